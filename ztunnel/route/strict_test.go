package route_test

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

func mutualTLS(t *testing.T, mode mesh.MutualTLS_Mode) func(*api.Workload) {
	return func(w *api.Workload) {
		config, err := anypb.New(&mesh.MutualTLS{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		w.Extensions = append(w.Extensions, &api.Extension{Name: workload.MutualTLSExtension, Config: config})
	}
}

// Nobody knows an address of the ranges of pods and Services, the controller neither: a strict
// source does not go there in plaintext. Outside of them it may.
func TestStrictSourceAndUnknownAddresses(t *testing.T) {
	strict, permissive := mesh.MutualTLS_STRICT, mesh.MutualTLS_PERMISSIVE
	for name, c := range map[string]struct {
		workload, namespace mesh.MutualTLS_Mode
		published           bool
		refused             bool
	}{
		"strict":                             {strict, strict, true, true},
		"strict in a permissive namespace":   {strict, permissive, true, true},
		"permissive":                         {permissive, permissive, true, false},
		"permissive in a strict namespace":   {permissive, strict, true, false},
		"unpublished, of a strict namespace": {permissive, strict, false, true},
		"unpublished, of a permissive one":   {permissive, permissive, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			store := workloadtest.Store(t, config, &mesh.Namespace{Name: "shop", MutualTls: c.namespace})
			web := pod("web", "n1", "1.1", mutualTLS(t, c.workload))
			source := &workload.Workload{UID: web.Uid, Namespace: "shop", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.1")}}
			if c.published {
				workloadtest.Apply(t, store, web)
				source, _ = store.Snapshot().WorkloadByUID(web.Uid)
			}
			for to, want := range map[string]bool{"10.244.9.9:8080": c.refused, "[fd00:10::9:9]:8080": c.refused, "10.96.9.9:80": c.refused, "[fd00:96::9]:80": c.refused, "203.0.113.1:443": false} {
				up, err := route.Decide(route.Request{Source: source, Destination: netip.MustParseAddrPort(to), Asked: true}, store.Snapshot(), first)
				refusal, _ := err.(*route.Refusal)
				switch {
				case want && (refusal == nil || refusal.Reason != route.StrictUnknown):
					t.Errorf("%s: %v, %v; want StrictUnknown", to, up.Kind, err)
				case !want && (err != nil || up.Kind != route.Plaintext):
					t.Errorf("%s: %v, %v; want Plaintext", to, up.Kind, err)
				}
			}
		})
	}
}
