package route_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/balance"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// known is what is known of endpoints, by name.
type known struct {
	load    map[string]int
	ejected map[string]bool
}

func (k known) Load(uid string, _ netip.AddrPort) int     { return k.load[name(uid)] }
func (k known) Ejected(uid string, _ netip.AddrPort) bool { return k.ejected[name(uid)] }

func name(uid string) string { return uid[strings.LastIndex(uid, "/")+1:] }

func ejected(names ...string) known {
	k := known{ejected: map[string]bool{}}
	for _, n := range names {
		k.ejected[n] = true
	}
	return k
}

// cartOf is web and the service cart with endpoints e0, e1, ... of these weights.
func cartOf(t testing.TB, weights ...uint32) *workload.Store {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"), service("cart", []string{"10.96.0.10"}))
	var all []proto.Message
	for i, w := range weights {
		all = append(all, pod(fmt.Sprint("e", i), "n2", fmt.Sprintf("%d.%d", 2+i/250, 1+i%250), serves(cart), weight(w)))
	}
	workloadtest.Apply(t, store, all...)
	return store
}

// equal weights of n endpoints.
func equal(n int) []uint32 { return slices.Repeat([]uint32{1}, n) }

// Both sizes matter: a few endpoints are all looked at, of many some are drawn.
func TestOfTwoEndpointsTheOneWithLessLoadIsChosen(t *testing.T) {
	if got := spread(t, cartOf(t, 1, 1), "10.96.0.10:80", 1000, known{load: map[string]int{"e0": 3, "e1": 2}}); got["e1"] != 1000 {
		t.Errorf("%v, want all for e1", got)
	}
	const n = 20
	load := map[string]int{"e7": 1}
	got := spread(t, cartOf(t, equal(n)...), "10.96.0.10:80", 1000, known{load: load})
	if got["e7"] != 0 {
		t.Errorf("the only one with load got %d", got["e7"])
	}
	// The only idle one is in one of ten pairs, and wins there.
	load = map[string]int{}
	for i := range n {
		load[fmt.Sprint("e", i)] = 1
	}
	delete(load, "e7")
	got = spread(t, cartOf(t, equal(n)...), "10.96.0.10:80", 10000, known{load: load})
	if got["e7"] < 900 || got["e7"] > 1100 {
		t.Errorf("the only idle one got %d, want about 1000: two are drawn, not all compared", got["e7"])
	}
}

// With equal loads an endpoint gets connections by its weight.
func TestWeights(t *testing.T) {
	for _, weights := range [][]uint32{{1, 3}, {1, 2, 3, 4}, {1, 1, 1, 1, 1, 1, 1, 1, 4, 8}, {5, 0, 5, 5, 5, 5, 25}, equal(30)} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			const connections = 40000
			got := spread(t, cartOf(t, weights...), "10.96.0.10:80", connections, known{})
			wantSpread(t, got, weights, connections)
		})
	}
}

// Connections that live on are spread by weight as well, and evenly: no
// endpoint is far from its share, as it would be by chance alone.
func TestLongLivedConnectionsSpreadByWeight(t *testing.T) {
	for _, weights := range [][]uint32{{1, 3}, equal(10), {1, 1, 1, 1, 1, 1, 1, 5, 10, 20}} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			const connections = 4000
			store := cartOf(t, weights...)
			snapshot := store.Snapshot()
			web, _ := snapshot.WorkloadByUID(uid("web"))
			live, pick := map[string]int{}, chance()
			for range connections {
				up, err := route.Decide(route.Request{
					Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80"), Endpoints: known{load: live},
				}, snapshot, pick)
				if err != nil {
					t.Fatal(err)
				}
				live[up.Workload.Name]++
			}
			wantSpread(t, live, weights, connections)
		})
	}
}

// wantSpread demands every endpoint's share within a tenth.
func wantSpread(t *testing.T, got map[string]int, weights []uint32, connections int) {
	t.Helper()
	total := 0
	for _, w := range weights {
		total += int(w)
	}
	for i, w := range weights {
		want := connections * int(w) / total
		if n := got[fmt.Sprint("e", i)]; n < want*9/10 || n > want*11/10 {
			t.Errorf("e%d of weight %d got %d, want about %d: %v", i, w, n, want, got)
		}
	}
}

// Whatever the endpoints are like: nobody gets an avoided one, or an ejected one
// while another one can be used; and a refusal comes only when all were tried.
func TestWhoIsNeverChosen(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for round := range 300 {
		var (
			n      = 1 + random.IntN(12)
			state  = known{load: map[string]int{}, ejected: map[string]bool{}}
			store  = workloadtest.Store(t, config, pod("web", "n1", "1.1", in("r", "z1")))
			modes  = []api.LoadBalancing_Mode{api.LoadBalancing_UNSPECIFIED_MODE, api.LoadBalancing_FAILOVER}
			avoid  []string
			usable = map[string]bool{}
			fine   = map[string]bool{}
		)
		affinity := func(s *api.Service) {
			if random.IntN(3) == 0 {
				s.Extensions = affinityOf(t)
			}
		}
		workloadtest.Apply(t, store, service("cart", []string{"10.96.0.10"}, balanced(modes[random.IntN(2)], api.LoadBalancing_ZONE, api.LoadBalancing_NODE), affinity))
		for i := range n {
			e, w := fmt.Sprint("e", i), uint32(random.IntN(4))
			workloadtest.Apply(t, store, pod(e, fmt.Sprint("n", 1+random.IntN(2)), fmt.Sprint("2.", 1+i), serves(cart), weight(w), in("r", fmt.Sprint("z", 1+random.IntN(2)))))
			state.load[e], state.ejected[e] = random.IntN(5), random.IntN(2) == 0
			usable[e] = w > 0
			if random.IntN(4) == 0 {
				avoid = append(avoid, uid(e))
				usable[e] = false
			}
			fine[e] = usable[e] && !state.ejected[e]
		}
		snapshot := store.Snapshot()
		web, _ := snapshot.WorkloadByUID(uid("web"))
		r := route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80"), Avoid: avoid, Endpoints: state}
		for range 50 {
			up, err := route.Decide(r, snapshot, random.Uint64N)
			switch {
			case err != nil && any(usable), err == nil && !usable[up.Workload.Name]:
				t.Fatalf("round %d: %s, may use %v", round, say(up, err), usable)
			case err == nil && any(fine) && (!fine[up.Workload.Name] || up.Panic), err == nil && !any(fine) && !up.Panic:
				t.Fatalf("round %d: got %s, panic %t; not ejected: %v", round, up.Workload.Name, up.Panic, fine)
			}
		}
	}
}

func any(set map[string]bool) bool {
	return slices.Contains(slices.Collect(maps.Values(set)), true)
}

func affinityOf(t testing.TB) []*api.Extension {
	t.Helper()
	config, err := anypb.New(&mesh.SessionAffinity{ClientIpTimeoutSeconds: 10800})
	if err != nil {
		t.Fatal(err)
	}
	return []*api.Extension{{Name: workload.SessionAffinityExtension, Config: config}}
}

// Where all of the nearest endpoints are ejected the next nearest are used, as
// where they are unhealthy; where there is no next one, the ejected ones.
func TestEjectionFailsOver(t *testing.T) {
	nearest := []api.LoadBalancing_Scope{api.LoadBalancing_NETWORK, api.LoadBalancing_REGION, api.LoadBalancing_ZONE, api.LoadBalancing_NODE}
	mesh := []*api.Workload{
		pod("here", "n1", "1.11", serves(cart), in("r", "z1")),
		pod("zone1", "n2", "2.12", serves(cart), in("r", "z1")),
		pod("zone2", "n3", "3.13", serves(cart), in("r", "z1")),
		pod("region", "n4", "4.14", serves(cart), in("r", "z2")),
		pod("abroad", "n5", "5.15", serves(cart), in("q", "z9")),
	}
	tests := []struct {
		name    string
		service func(*api.Service)
		ejected []string
		want    []string
		near    balance.Nearness
		panic   bool
	}{
		{"none", balanced(api.LoadBalancing_FAILOVER, nearest...), nil, []string{"here"}, balance.SameNode, false},
		{"the node's", balanced(api.LoadBalancing_FAILOVER, nearest...), []string{"here"}, []string{"zone1", "zone2"}, balance.SameZone, false},
		{"one of the zone's", balanced(api.LoadBalancing_FAILOVER, nearest...), []string{"here", "zone1"}, []string{"zone2"}, balance.SameZone, false},
		{"all of the zone's", balanced(api.LoadBalancing_FAILOVER, nearest...), []string{"here", "zone1", "zone2"}, []string{"region"}, balance.SameRegion, false},
		{"all of the region's", balanced(api.LoadBalancing_FAILOVER, nearest...), []string{"here", "zone1", "zone2", "region"}, []string{"abroad"}, balance.Elsewhere, false},
		{"all: the nearest, regardless", balanced(api.LoadBalancing_FAILOVER, nearest...), []string{"here", "zone1", "zone2", "region", "abroad"}, []string{"here"}, balance.SameNode, true},
		{"a farther one alone", balanced(api.LoadBalancing_FAILOVER, nearest[:3]...), []string{"abroad"}, []string{"here", "zone1", "zone2"}, balance.SameZone, false},
		{"strict: the node's only one, regardless", balanced(api.LoadBalancing_STRICT, api.LoadBalancing_NODE), []string{"here"}, []string{"here"}, balance.SameNode, true},
		{"no preference", balanced(0), []string{"here", "zone1", "abroad"}, []string{"region", "zone2"}, balance.SameRegion, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := workloadtest.Store(t, config, pod("web", "n1", "1.1", in("r", "z1")), service("cart", []string{"10.96.0.10"}, test.service))
			for _, w := range mesh {
				workloadtest.Apply(t, store, w)
			}
			if got := reachable(t, store, "10.96.0.10:80", ejected(test.ejected...)); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			snapshot := store.Snapshot()
			web, _ := snapshot.WorkloadByUID(uid("web"))
			up, err := route.Decide(route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80"), Endpoints: ejected(test.ejected...)}, snapshot, first)
			if err != nil || up.Panic != test.panic || len(test.want) == 1 && up.Nearness != test.near {
				t.Errorf("%s, nearness %s, panic %t (%v); want %s, %t", up.Workload.Name, up.Nearness, up.Panic, err, test.near, test.panic)
			}
		})
	}
}

// A client whose own endpoint is ejected moves to one other, and back.
func TestAffinityMovesWhileItsEndpointIsEjected(t *testing.T) {
	store := cartOf(t, equal(6)...)
	workloadtest.Apply(t, store, service("cart", []string{"10.96.0.10"}, func(s *api.Service) { s.Extensions = affinityOf(t) }))
	own := reachable(t, store, "10.96.0.10:80")
	other := reachable(t, store, "10.96.0.10:80", ejected(own...))
	if len(own) != 1 || len(other) != 1 || own[0] == other[0] {
		t.Fatalf("own %v, while ejected %v", own, other)
	}
	if again := reachable(t, store, "10.96.0.10:80", ejected(other...)); !slices.Equal(again, own) {
		t.Errorf("%v, want %v back", again, own)
	}
}

// What an ejection is measured against is all that the client might have got.
func TestPeersAreThoseThatMayBeUsed(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"), service("cart", []string{"10.96.0.10"}),
		pod("a", "n1", "1.2", serves(cart)), pod("b", "n2", "2.2", serves(cart)),
		pod("c", "n2", "2.3", serves(cart), unhealthy), pod("d", "n2", "2.4", serves(cart), weight(0)), pod("e", "n2", "2.5"))
	snapshot := store.Snapshot()
	web, _ := snapshot.WorkloadByUID(uid("web"))
	s, _ := snapshot.Service(cart)
	r := route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80"), Avoid: []string{uid("a")}, Endpoints: ejected("b")}
	got := maps.Collect(route.Peers(r, route.Upstream{Service: s}, snapshot))
	want := map[string]netip.AddrPort{uid("a"): netip.MustParseAddrPort("10.244.1.2:8080"), uid("b"): netip.MustParseAddrPort("10.244.2.2:8080")}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// How near an endpoint is, to whoever reads the metric.
func TestNearness(t *testing.T) {
	for _, c := range []struct {
		client, endpoint [3]string // node, region, zone
		want             balance.Nearness
	}{
		{[3]string{"n1", "r", "z1"}, [3]string{"n1", "r", "z1"}, balance.SameNode},
		{[3]string{"n1", "r", "z1"}, [3]string{"n2", "r", "z1"}, balance.SameZone},
		{[3]string{"n1", "", "z1"}, [3]string{"n2", "r", "z1"}, balance.SameZone},
		{[3]string{"n1", "r", "z1"}, [3]string{"n2", "q", "z1"}, balance.Elsewhere},
		{[3]string{"n1", "r", "z1"}, [3]string{"n2", "r", "z2"}, balance.SameRegion},
		{[3]string{"n1", "r", "z1"}, [3]string{"n2", "r", ""}, balance.SameRegion},
		{[3]string{"n1", "r", "z1"}, [3]string{"n2", "q", "z2"}, balance.Elsewhere},
		{[3]string{"n1", "", "z1"}, [3]string{"n2", "", "z2"}, balance.Elsewhere},
		{[3]string{"n1", "", ""}, [3]string{"n1", "", ""}, balance.SameNode},
		{[3]string{"n1", "", ""}, [3]string{"n2", "", ""}, balance.Unplaced},
		{[3]string{"n1", "r", "z1"}, [3]string{"n2", "", ""}, balance.Unplaced},
		{[3]string{"", "", ""}, [3]string{"", "", ""}, balance.Unplaced},
	} {
		store := workloadtest.Store(t, config, service("cart", []string{"10.96.0.10"}),
			pod("web", c.client[0], "1.1", in(c.client[1], c.client[2])),
			pod("e", c.endpoint[0], "2.1", serves(cart), in(c.endpoint[1], c.endpoint[2])))
		web, _ := store.Snapshot().WorkloadByUID(uid("web"))
		up, err := route.Decide(route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80")}, store.Snapshot(), first)
		if err != nil || up.Nearness != c.want {
			t.Errorf("%q to %q: %s (%v), want %s", c.client, c.endpoint, up.Nearness, err, c.want)
		}
	}
}

// Load decides among the nearest endpoints, and not between near and far.
func TestTheNearestIsChosenWhateverItsLoad(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"),
		service("cart", []string{"10.96.0.10"}, balanced(api.LoadBalancing_FAILOVER, api.LoadBalancing_NODE)),
		pod("near", "n1", "1.2", serves(cart)))
	for i := range 9 {
		workloadtest.Apply(t, store, pod(fmt.Sprint("far", i), "n2", fmt.Sprint("2.", 1+i), serves(cart)))
	}
	if got := spread(t, store, "10.96.0.10:80", 1000, known{load: map[string]int{"near": 9}}); got["near"] != 1000 {
		t.Errorf("%v, want all for the near one", got)
	}
}
