// Package ambit holds no code: its test holds the architecture.
package ambit

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/ambit-mesh/ambit/"

// rule: no package below from imports one below to.
type rule struct {
	from, to []string
	except   []string
	reason   string
}

var components = []string{"ztunnel", "waypoint", "controller", "cli"}

var rules = []rule{
	{
		from: []string{"ztunnel"}, to: []string{"waypoint", "controller", "cli"},
		reason: "components meet on the wire: an import would tie their releases together",
	},
	{
		from: []string{"controller"}, to: []string{"waypoint", "ztunnel", "cli"},
		reason: "components meet on the wire: an import would tie their releases together",
	},
	{
		from: []string{"cli"}, to: []string{"waypoint", "controller", "ztunnel"},
		reason: "components meet on the wire: an import would tie their releases together",
	},
	{
		from: []string{"waypoint/upstream"}, to: []string{"waypoint/server", "waypoint/exchange", "internal/feed"},
		reason: "connecting endpoints is below what asks for it",
	},
	{
		from: []string{"internal/jwt"}, to: []string{"net", "net/http", "os", "sync", "api", "internal/workload"},
		reason: "whether a token is good is a pure function of it and of keys: no I/O",
	},
	{
		from: []string{"waypoint/jwks", "waypoint/authorizer"}, to: []string{"waypoint/exchange", "waypoint/server", "waypoint/upstream", "internal/workload"},
		reason: "who asks others knows neither connections nor the mesh: the way to a Service is given to it",
	},
	{
		from: []string{"waypoint/target"}, to: []string{"net", "os", "time", "sync", "internal/feed", "internal/hbone", "internal/certs"},
		reason: "what an address stands for is found in a snapshot: no I/O, no clock, no lock",
	},
	{
		from:   []string{"waypoint/request", "waypoint/route", "waypoint/filter", "waypoint/policy", "waypoint/session", "waypoint/token"},
		to:     []string{"net", "os", "sync", "internal/feed", "internal/hbone", "internal/certs", "internal/workload", "waypoint/exchange", "waypoint/server", "waypoint/upstream", "waypoint/target"},
		reason: "what becomes of a request is a pure function of it and of what applies: no I/O, no lock, no model of the mesh",
	},
	{
		from: []string{"waypoint"}, to: []string{"ztunnel", "controller", "cli"},
		reason: "components meet on the wire: an import would tie their releases together",
	},
	{
		from: []string{"internal", "api", "bpf"}, to: append([]string{"deploy", "e2e"}, components...),
		reason: "what several components use knows none of them",
	},
	{
		from: []string{"api"}, to: []string{"internal", "bpf"},
		reason: "api is what programs outside this repository may import: it depends on nothing here",
	},
	{
		from: []string{"internal/hbone", "internal/spiffe"}, to: []string{"api", "internal/workload", "internal/feed"},
		reason: "the tunnel carries bytes between identities and knows no configuration",
	},
	{
		from: []string{"ztunnel/route"}, to: []string{"net", "os", "time", "sync", "internal/feed", "internal/hbone", "internal/certs", "internal/endpoints"},
		reason: "routing is a pure function of a snapshot: no I/O, no clock, no lock",
	},
	{
		from: []string{"internal/balance"}, to: []string{"net", "os", "time", "sync", "internal/feed", "internal/hbone", "internal/certs", "internal/endpoints"},
		reason: "choosing an endpoint is a pure function of a snapshot: no I/O, no clock, no lock",
	},
	{
		from: []string{"internal/authz"}, to: []string{"net", "os", "time", "sync", "internal/workload", "internal/feed", "internal/hbone", "internal/certs"},
		reason: "a policy decision is a pure function: no I/O, no clock, no lock, and no model of the mesh",
	},
	{
		from: []string{"ztunnel/egress"}, to: []string{"net", "os", "bpf", "internal/feed", "ztunnel/dns", "ztunnel/redirect", "internal/conns"},
		reason: "what may leave is decided from a snapshot and what was learnt: no I/O",
	},
	{
		from: []string{"controller/translate"}, to: []string{"os", "net", "sync", "k8s.io/client-go"},
		reason: "translation is a pure function: Kubernetes objects in, resources out",
	},
	{
		from: []string{"ztunnel/outbound", "ztunnel/inbound", "ztunnel/dns"}, to: []string{"ztunnel/redirect", "ztunnel/podns", "ztunnel/pods", "bpf"},
		reason: "the data path takes sockets through small interfaces: it must be testable without a kernel",
	},
	{
		from: []string{"ztunnel/inbound"}, to: []string{"ztunnel/outbound"},
		reason: "features are siblings: arrows point down, never sideways",
	},
	{
		from: []string{"ztunnel/outbound"}, to: []string{"ztunnel/inbound"},
		reason: "features are siblings: arrows point down, never sideways",
	},
	{
		from: []string{"ztunnel"}, to: []string{"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers"}, except: []string{"ztunnel/kube/kubetest"},
		reason: "the clientset knows every kind of object there is, and would be half of what ztunnel occupies on every node: package kube knows those it reads",
	},
	{
		from: []string{"."}, to: []string{"github.com/cilium/ebpf"}, except: []string{"bpf", "ztunnel/redirect", "internal/netnstest"},
		reason: "package bpf is the only door to the kernel programs, redirect its only user",
	},
}

type goPackage struct {
	ImportPath, Dir, Name string
	Imports               []string
	GoFiles               []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Name,Imports,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func below(path string, roots []string) bool {
	for _, root := range roots {
		if root == "." || path == root || strings.HasPrefix(path, root+"/") {
			return true
		}
	}
	return false
}

// local returns an import path as the rules name it: ours without the module.
func local(importPath string) string {
	return strings.TrimPrefix(importPath, module)
}

func TestImportsFollowTheArchitecture(t *testing.T) {
	all := packages(t)
	if len(all) < 10 {
		t.Fatalf("go list found %d packages: the rules would hold for want of anything to break them", len(all))
	}
	for _, p := range all {
		from := local(p.ImportPath)
		for _, imported := range p.Imports {
			for _, r := range rules {
				if below(from, r.from) && !below(from, r.except) && breaks(local(imported), r.to) {
					t.Errorf("%s imports %s: %s", from, local(imported), r.reason)
				}
			}
		}
	}
}

// breaks tells whether an import is forbidden. Names of the standard library
// are exact, since `net/netip` is a value type and `net` is I/O.
func breaks(imported string, forbidden []string) bool {
	for _, f := range forbidden {
		standard := !strings.Contains(f, "/") && !strings.Contains(f, ".") && imported == f
		if standard || (f != "net" && f != "os" && f != "time" && f != "sync" && below(imported, []string{f})) {
			return true
		}
	}
	return false
}

func TestEveryPackageHasOnePackageComment(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue // tests alone, as here
		}
		var documented []string
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil && !strings.HasSuffix(name, ".pb.go") && !strings.HasPrefix(name, "zz_generated") && !strings.Contains(name, "_bpfe") {
				documented = append(documented, name)
			}
		}
		if len(documented) != 1 {
			t.Errorf("%s: %d files bear a package comment %v, want exactly one: it says what the package is, its invariants, and what is not its job", local(p.ImportPath), len(documented), documented)
		}
	}
}
