package route_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/balance"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// Which endpoints a service's locality rules leave: pod "web" is on n1, in
// region r, zone z1.
func TestLocality(t *testing.T) {
	const (
		strict, failover                = api.LoadBalancing_STRICT, api.LoadBalancing_FAILOVER
		network, region, zone, nodeOnly = api.LoadBalancing_NETWORK, api.LoadBalancing_REGION, api.LoadBalancing_ZONE, api.LoadBalancing_NODE
	)
	here := func(name string, changes ...func(*api.Workload)) *api.Workload {
		return pod(name, "n1", "1.11", append(changes, serves(cart), in("r", "z1"))...)
	}
	sameZone := pod("samezone", "n2", "2.12", serves(cart), in("r", "z1"))
	sameRegion := pod("sameregion", "n3", "3.13", serves(cart), in("r", "z2"))
	abroad := pod("abroad", "n4", "4.14", serves(cart), in("q", "z9"))

	tests := []struct {
		name      string
		service   func(*api.Service)
		endpoints []*api.Workload
		want      []string
	}{
		{"no preference", balanced(0), []*api.Workload{here("here"), sameZone, sameRegion, abroad}, []string{"abroad", "here", "sameregion", "samezone"}},
		{"internalTrafficPolicy Local", balanced(strict, nodeOnly), []*api.Workload{here("here"), sameZone}, []string{"here"}},
		{"internalTrafficPolicy Local, none here", balanced(strict, nodeOnly), []*api.Workload{sameZone, abroad}, nil},
		{"strict zone", balanced(strict, region, zone), []*api.Workload{here("here"), sameZone, sameRegion}, []string{"here", "samezone"}},
		{"prefer close: same zone", balanced(failover, network, region, zone), []*api.Workload{here("here"), sameZone, sameRegion, abroad}, []string{"here", "samezone"}},
		{"prefer close: none in the zone", balanced(failover, network, region, zone), []*api.Workload{sameRegion, abroad}, []string{"sameregion"}},
		{"prefer close: only abroad", balanced(failover, network, region, zone), []*api.Workload{abroad}, []string{"abroad"}},
		{"prefer close: an unhealthy one nearby is none", balanced(failover, network, region, zone), []*api.Workload{here("here", unhealthy), abroad}, []string{"abroad"}},
		{"prefer close: a near one without weight is none", balanced(failover, network, region, zone), []*api.Workload{here("here", weight(0)), abroad}, []string{"abroad"}},
		{"prefer same node", balanced(failover, network, region, zone, nodeOnly), []*api.Workload{here("here"), sameZone, abroad}, []string{"here"}},
		{"prefer same node: none here", balanced(failover, network, region, zone, nodeOnly), []*api.Workload{sameZone, abroad}, []string{"samezone"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := workloadtest.Store(t, config, pod("web", "n1", "1.1", in("r", "z1")), service("cart", []string{"10.96.0.10"}, test.service))
			for _, w := range test.endpoints {
				workloadtest.Apply(t, store, w)
			}
			if got := reachable(t, store, "10.96.0.10:80"); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// Where no node has a zone, zones decide nothing, and the node still does.
func TestPreferSameNodeWithoutZones(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"),
		service("cart", []string{"10.96.0.10"}, balanced(api.LoadBalancing_FAILOVER,
			api.LoadBalancing_NETWORK, api.LoadBalancing_REGION, api.LoadBalancing_ZONE, api.LoadBalancing_NODE)),
		pod("here", "n1", "1.7", serves(cart)), pod("there", "n2", "2.7", serves(cart)))
	if got := reachable(t, store, "10.96.0.10:80"); !slices.Equal(got, []string{"here"}) {
		t.Errorf("got %v", got)
	}
}

// chance is the same in every run.
func chance() balance.Picker { return rand.New(rand.NewPCG(1, 2)).Uint64N }

// enough connections for whoever may be chosen to be chosen.
const enough = 200

// reachable lists the names of the endpoints that web gets.
func reachable(t *testing.T, store *workload.Store, to string, endpoints ...balance.Endpoints) (names []string) {
	t.Helper()
	for name := range spread(t, store, to, enough, endpoints...) {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// spread counts which endpoints web gets for its connections; none if it is refused.
func spread(t *testing.T, store *workload.Store, to string, connections int, endpoints ...balance.Endpoints) map[string]int {
	t.Helper()
	snapshot := store.Snapshot()
	web, _ := snapshot.WorkloadByUID(uid("web"))
	r := route.Request{Source: web, Destination: netip.MustParseAddrPort(to)}
	if len(endpoints) > 0 {
		r.Endpoints = endpoints[0]
	}
	got, pick := map[string]int{}, chance()
	for range connections {
		if up, err := route.Decide(r, snapshot, pick); err == nil {
			got[up.Workload.Name]++
		}
	}
	return got
}

// Endpoints that were tried in vain are not there: the next ones are taken,
// farther ones too, and what is left after all of them is a refusal.
func TestEndpointsTriedInVainAreAvoided(t *testing.T) {
	near := service("cart", []string{"10.96.0.10"}, func(s *api.Service) {
		s.LoadBalancing = &api.LoadBalancing{Mode: api.LoadBalancing_FAILOVER, RoutingPreference: []api.LoadBalancing_Scope{api.LoadBalancing_NODE}}
	})
	snapshot := workloadtest.Store(t, config, pod("web", "n1", "1.1"), near,
		pod("a", "n1", "1.2", serves(cart)), pod("b", "n2", "2.2", serves(cart))).Snapshot()
	web, _ := snapshot.WorkloadByUID(uid("web"))
	r := route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80")}
	for _, want := range []string{"a", "b"} {
		up, err := route.Decide(r, snapshot, first)
		if err != nil || up.Workload.Name != want {
			t.Fatalf("avoiding %v: %v (%v), want %s", r.Avoid, up.Workload, err, want)
		}
		r.Avoid = append(r.Avoid, up.Workload.UID)
	}
	if up, err := route.Decide(r, snapshot, first); err == nil {
		t.Errorf("avoiding both: %s", up.Workload.Name)
	}
}

// ClientIP affinity: a client keeps its endpoint, whatever is picked and
// whoever else comes and goes; clients spread over the endpoints.
func TestAffinity(t *testing.T) {
	sticky := service("cart", []string{"10.96.0.10"}, func(s *api.Service) {
		config, err := anypb.New(&mesh.SessionAffinity{ClientIpTimeoutSeconds: 10800})
		if err != nil {
			t.Fatal(err)
		}
		s.Extensions = []*api.Extension{{Name: workload.SessionAffinityExtension, Config: config}}
	})
	endpoints := []string{"e0", "e1", "e2", "e3"}
	const clients = 200
	store := workloadtest.Store(t, config, sticky)
	for i, name := range endpoints {
		workloadtest.Apply(t, store, pod(name, "n2", "2."+string(rune('1'+i)), serves(cart)))
	}
	choices := func() map[int]string {
		out := map[int]string{}
		for i := range clients {
			client := &workload.Workload{UID: "client", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 7, byte(i)})}, ClusterID: "Kubernetes"}
			r := route.Request{Source: client, Destination: netip.MustParseAddrPort("10.96.0.10:80")}
			one, err := route.Decide(r, store.Snapshot(), first)
			if err != nil {
				t.Fatal(err)
			}
			if other, _ := route.Decide(r, store.Snapshot(), last); other.Workload != one.Workload {
				t.Fatalf("client %d changes between %s and %s", i, one.Workload.Name, other.Workload.Name)
			}
			out[i] = one.Workload.Name
		}
		return out
	}

	before := choices()
	share := map[string]int{}
	for _, name := range before {
		share[name]++
	}
	for _, name := range endpoints {
		if fair := clients / len(endpoints); share[name] < fair/2 || share[name] > 2*fair {
			t.Errorf("%s has %d of %d clients", name, share[name], clients)
		}
	}

	store.Apply(workload.Delta{Type: workload.AddressType, Removed: []string{uid("e1")}})
	for i, name := range choices() {
		if before[i] != "e1" && name != before[i] {
			t.Errorf("client %d moved from %s to %s because e1 left", i, before[i], name)
		}
	}
}

// A connection to a service costs no memory that grows with its endpoints.
func TestBalancingDoesNotAllocatePerEndpoint(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"), service("cart", []string{"10.96.0.10"}))
	for i := range 200 {
		workloadtest.Apply(t, store, pod(fmt.Sprint("e", i), "n2", "2.7", serves(cart)))
	}
	snapshot := store.Snapshot()
	web, _ := snapshot.WorkloadByUID(uid("web"))
	r := route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80")}
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := route.Decide(r, snapshot, last); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 1 {
		t.Errorf("%.0f allocations, want at most the one for the identities", allocs)
	}
}
