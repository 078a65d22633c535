package main

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// FuzzConfig: whatever a container runtime passes, what is understood of it is
// whole: absolute paths, addresses, a pod with both of its names.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"net","type":"ambit-cni","socket":"/a","excludedNamespaces":["b"],"prevResult":`+prevResult+`}`),
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=uid-1")
	f.Add([]byte(`{"prevResult":{"ips":[{"address":"10.0.0.1/24","interface":-1}]}}`), "K8S_POD_NAME=;;=")
	f.Add([]byte(`{"logLevel":"debug","prevResult":null}`), "")
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		conf, err := parseConfig(stdin)
		if err != nil {
			return
		}
		if !filepath.IsAbs(conf.Socket) || !filepath.IsAbs(conf.EnrolmentFile) {
			t.Fatalf("socket %q, file %q", conf.Socket, conf.EnrolmentFile)
		}
		if previous, err := conf.previous(); err == nil {
			for _, address := range previous.addresses() {
				if _, err := netip.ParseAddr(address); err != nil {
					t.Fatal(err)
				}
			}
		}
		sandbox, isPod, err := parsePod(&skel.CmdArgs{StdinData: stdin, Args: args})
		if err == nil && isPod != (sandbox.Namespace != "" && sandbox.Name != "") {
			t.Fatalf("a pod: %t, %q/%q", isPod, sandbox.Namespace, sandbox.Name)
		}
	})
}

// FuzzEnrolment: whatever the file says, the gate opens by it only for what it
// says, in so many words, is outside of the mesh.
func FuzzEnrolment(f *testing.F) {
	f.Add([]byte(`{"excluded":["a"],"namespaces":{"shop":{"mode":"ambient"},"plain":{"mode":"none"},"mixed":{"mode":"none","labelled_pods":true}}}`), "shop")
	f.Add([]byte(`{"namespaces":{"plain":{"mode":"none"}},"Namespaces":null}`), "plain")
	f.Add([]byte(`{"excluded":[""]}`), "")
	f.Fuzz(func(t *testing.T, content []byte, namespace string) {
		var enrolment cniproto.Enrolment
		if json.Unmarshal(content, &enrolment) != nil {
			return
		}
		open, code, reason := enrolment.Opens(namespace)
		known, ok := enrolment.Namespaces[namespace]
		outside := slices.Contains(enrolment.Excluded, namespace) || ok && known.Mode == cniproto.ModeNone && !known.LabelledPods
		if open != outside {
			t.Fatalf("open: %t, outside of the mesh: %t", open, outside)
		}
		if !open && (code == "" || reason == "") {
			t.Fatalf("shut without a reason: %q, %q", code, reason)
		}
	})
}
