package cniinstall

import (
	"bytes"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// FuzzChain: whatever conflist is there, editing it gives one that has exactly
// one entry of ours, is stable, and without that entry has everything else.
func FuzzChain(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap","x":[1,2]}]}`,
		"{\n  \"name\": \"n\",\n  \"plugins\": [ {\"type\":\"a\"} , {\"type\":\"ambit-cni\"} , {\"type\":\"ambit-cni\",\"socket\":\"/x\"} ] }\n",
		`{"plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}`, `{"plugins":[{"type":"a","type":"ambit-cni"}]}`, `[]`,
	} {
		f.Add([]byte(s))
	}
	entry := cniproto.ChainEntry{Type: cniproto.PluginType, Socket: "/run/ambit/cni.sock", EnrolmentFile: "/var/lib/ambit/enrolment.json"}
	f.Fuzz(func(t *testing.T, content []byte) {
		edited, err := withEntry(content, entry)
		if err != nil {
			return
		}
		plugins, err := parseChain(edited)
		if err != nil {
			t.Fatalf("%s became %s: %v", content, edited, err)
		}
		ours := 0
		for _, p := range plugins {
			if p.kind == cniproto.PluginType {
				ours++
				if !says(p.raw, entry) {
					t.Fatalf("our entry says %s", p.raw)
				}
			}
		}
		if ours != 1 {
			t.Fatalf("%d entries of ours in %s", ours, edited)
		}
		again, err := withEntry(edited, entry)
		if err != nil || !bytes.Equal(again, edited) {
			t.Fatalf("edited again, %s became %s, %v", edited, again, err)
		}
		before, errBefore := withoutEntry(content)
		after, errAfter := withoutEntry(edited)
		if errBefore != nil || errAfter != nil || !bytes.Equal(before, after) {
			t.Fatalf("without our entries: %s, %v before; %s, %v after", before, errBefore, after, errAfter)
		}
	})
}
