package cniinstall

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzChain: whatever somebody has written, our entry goes in once, comes out
// without a trace, and nothing else of the file is touched.
func FuzzChain(f *testing.F) {
	f.Add([]byte(chain))
	f.Add([]byte(`{"name":"net","plugins":[{"type":"ptp"}]}`))
	f.Add([]byte(`{"name":"net","plugins":[{"type":"ptp"},{"type":"ambit-cni"},{"type":"x"}],"plugins":[]}`))
	f.Add([]byte(`{"name":"net","Plugins":[{"type":"ptp"}],"plugins":[{"type":"b"}]}`))
	f.Add([]byte("{\"name\":\"\\u006e\",\"plugins\" : [ {\"type\":\"ptp\"} , {\"type\":\"ambit\\u002dcni\"} ]}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		with, err := withEntry(content, entry)
		if err != nil {
			return // not understood, and so not touched
		}
		if !json.Valid(with) {
			t.Fatalf("%q became %q, which is no JSON", content, with)
		}
		again, err := withEntry(with, entry)
		if err != nil || !bytes.Equal(again, with) {
			t.Fatalf("%q: a second time it became %q (%v)", with, again, err)
		}
		plain, err := withoutEntry(content)
		if err != nil {
			t.Fatalf("%q: in, and not out: %v", content, err)
		}
		out, err := withoutEntry(with)
		if err != nil || !bytes.Equal(out, plain) {
			t.Fatalf("%q came out as %q (%v), without an entry it is %q", with, out, err, plain)
		}
	})
}
