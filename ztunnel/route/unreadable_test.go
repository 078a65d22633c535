package route_test

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// A destination took plaintext, and what is said of it now cannot be read: it may take it no longer.
func TestUnreadableNewStateEndsPlaintext(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"), pod("db", "n2", "2.1", plain))
	source, _ := store.Snapshot().WorkloadByUID(uid("web"))
	request := route.Request{Source: source, Destination: netip.MustParseAddrPort("10.244.2.1:5432")}
	if up, err := route.Decide(request, store.Snapshot(), first); err != nil || up.Kind != route.Plaintext {
		t.Fatalf("%v, %v", up.Kind, err)
	}
	store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{
		workloadtest.Resource(t, pod("db", "n2", "2.1", plain, mutualTLS(t, mesh.MutualTLS_Mode(99)))),
	}})
	_, err := route.Decide(request, store.Snapshot(), first)
	if refusal, _ := err.(*route.Refusal); refusal == nil || refusal.Reason != route.Unreadable {
		t.Errorf("%v, want Unreadable", err)
	}
}
