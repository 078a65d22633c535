package variant

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/internal/topology"
	"github.com/ambit-mesh/ambit/internal/workload"
)

var update = flag.Bool("update", false, "write the golden files anew")

func site() Site {
	pod := func(a string) *topology.Pod { return &topology.Pod{IPv4: netip.MustParseAddr(a)} }
	return Site{Client: pod("10.1.0.2"), Proxy: pod("10.2.0.2"), Backend: pod("10.3.0.2"), Dir: "/site", PKI: "/pki", Routes: 6}
}

func TestConfigurations(t *testing.T) {
	for name, secure := range map[string]bool{"secure": true, "plain": false} {
		s := site().settings(secure)
		entries, err := templates.ReadDir("templates")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Run(name+"/"+e.Name(), func(t *testing.T) {
				var got bytes.Buffer
				if err := s.render(&got, e.Name()); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join("testdata", name, e.Name())
				if *update {
					if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got.String()); diff != "" {
					t.Errorf("%s (go test -update writes it anew): %s", path, diff)
				}
			})
		}
	}
}

// What the controller says is accepted, and the routes lead where the plan says.
func TestWorldIsAccepted(t *testing.T) {
	s := site()
	s.Routes = plan.ManyRoutes
	store := workload.NewStore()
	for _, message := range s.world(true) {
		r, err := resource(message)
		if err != nil {
			t.Fatal(err)
		}
		for _, rejection := range store.Apply(workload.Delta{Type: r.Body.GetTypeUrl(), Upserts: []workload.Resource{r}}) {
			t.Error(rejection)
		}
	}
	snapshot := store.Snapshot()
	binding, ok := snapshot.Binding(keyOf("front"))
	if !ok || len(binding.Routes) != plan.ManyRoutes {
		t.Fatalf("the front's binding: %+v", binding)
	}
	for _, name := range binding.Policies {
		if _, ok := snapshot.RequestPolicy(name); !ok {
			t.Errorf("policy %s is not there", name)
		}
	}
	for _, name := range plan.Backends {
		if service, ok := snapshot.Service(keyOf(name)); !ok {
			t.Errorf("service %s is not there", name)
		} else if _, ok := service.Port(80); !ok {
			t.Errorf("service %s has no port 80", name)
		}
	}
}
