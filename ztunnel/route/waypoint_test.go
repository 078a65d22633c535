package route_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

const gate = "shop/waypoint.shop.svc.cluster.local"

// gateService is the waypoint's Service.
func gateService() *api.Service {
	return service("waypoint", []string{"10.96.0.99"}, func(s *api.Service) { s.Ports = []*api.Port{{ServicePort: 15008, TargetPort: 15008}} })
}

// gatePod is a pod of the waypoint.
func gatePod(name, node, ip string, changes ...func(*api.Workload)) *api.Workload {
	return pod(name, node, ip, append([]func(*api.Workload){func(w *api.Workload) {
		w.NativeTunnel, w.ServiceAccount = true, "waypoint"
		w.Services = map[string]*api.PortList{gate: {Ports: []*api.Port{{ServicePort: 15008, TargetPort: 15008}}}}
	}}, changes...)...)
}

func boundTo(s *api.Service) { s.Waypoint = waypoint() }

func fallback() []*api.Extension {
	config, err := anypb.New(&mesh.WaypointFallback{})
	if err != nil {
		panic(err)
	}
	return []*api.Extension{{Name: workload.WaypointFallbackExtension, Config: config}}
}

// What is behind a waypoint, and how pod "web" on node n1 gets there.
func TestDecideForWhatIsBehindAWaypoint(t *testing.T) {
	clusterIPs := []string{"10.96.0.10", "fd00:96::10"}
	const toGate = " via 10.244.3.9:15008 as spiffe://cluster.local/ns/shop/sa/waypoint"
	there := []proto.Message{gateService(), gatePod("waypoint-0", "n3", "3.9")}
	with := func(more ...proto.Message) []proto.Message {
		return append(append([]proto.Message{}, there...), more...)
	}
	tests := []struct {
		name string
		mesh []proto.Message
		to   string
		want string
	}{
		{"service: asked for by its own address",
			with(service("cart", clusterIPs, boundTo), pod("cart", "n2", "2.7", serves(cart))), "10.96.0.10:80", "Tunnel 10.96.0.10:80" + toGate},
		{"service: also without an endpoint, which is the waypoint's matter",
			with(service("cart", clusterIPs, boundTo)), "10.96.0.10:80", "Tunnel 10.96.0.10:80" + toGate},
		{"service: by its IPv6 address",
			with(service("cart", clusterIPs, boundTo)), "[fd00:96::10]:80", "Tunnel [fd00:96::10]:80 via [fd00:10::3:9]:15008 as spiffe://cluster.local/ns/shop/sa/waypoint"},
		{"waypoint on the same node: no short way to it",
			[]proto.Message{gateService(), gatePod("waypoint-0", "n1", "1.9"), service("cart", clusterIPs, boundTo)}, "10.96.0.10:80",
			"Tunnel 10.96.0.10:80 via 10.244.1.9:15008 as spiffe://cluster.local/ns/shop/sa/waypoint"},
		{"an endpoint by its own address, on a port of the service",
			with(service("cart", clusterIPs, boundTo), pod("cart", "n2", "2.7", serves(cart))), "10.244.2.7:8080", "Tunnel 10.244.2.7:8080" + toGate},
		{"an endpoint by its own address, on another port",
			with(service("cart", clusterIPs, boundTo), pod("cart", "n2", "2.7", serves(cart))), "10.244.2.7:9999",
			"Tunnel 10.244.2.7:9999 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"a pod that is bound itself",
			with(pod("cart", "n2", "2.7", behindWaypoint)), "10.244.2.7:9999", "Tunnel 10.244.2.7:9999" + toGate},
		{"a pod that is bound itself, through a service that is not",
			with(service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart), behindWaypoint)), "10.96.0.10:80", "Tunnel 10.244.2.7:8080" + toGate},
		{"own address, of a pod that is bound", nil, "10.244.1.1:8080", "Local 10.244.1.1:8080"},

		{"no such waypoint", []proto.Message{service("cart", clusterIPs, boundTo), pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80", "refuse WaypointUnavailable"},
		{"no such waypoint, endpoint by its own address",
			[]proto.Message{service("cart", clusterIPs, boundTo), pod("cart", "n2", "2.7", serves(cart))}, "10.244.2.7:8080", "refuse WaypointUnavailable"},
		{"waypoint without a pod", []proto.Message{gateService(), service("cart", clusterIPs, boundTo), pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80", "refuse WaypointUnavailable"},
		{"waypoint whose pods are not ready",
			[]proto.Message{gateService(), gatePod("waypoint-0", "n3", "3.9", unhealthy), service("cart", clusterIPs, boundTo), pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80", "refuse WaypointUnavailable"},
		{"what is called a waypoint takes no tunnels",
			[]proto.Message{gateService(), gatePod("waypoint-0", "n3", "3.9", plain), service("cart", clusterIPs, boundTo)}, "10.96.0.10:80", "refuse WaypointUnavailable"},
		{"what is called a waypoint is an ordinary pod",
			[]proto.Message{gateService(), gatePod("waypoint-0", "n3", "3.9", func(w *api.Workload) { w.NativeTunnel = false }), service("cart", clusterIPs, boundTo)}, "10.96.0.10:80", "refuse WaypointUnavailable"},

		{"no waypoint, and the owner wants it reached all the same",
			[]proto.Message{service("cart", clusterIPs, boundTo, func(s *api.Service) { s.Extensions = fallback() }), pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"a waypoint is there, and the owner would do without",
			with(service("cart", clusterIPs, boundTo, func(s *api.Service) { s.Extensions = fallback() }), pod("cart", "n2", "2.7", serves(cart))), "10.96.0.10:80",
			"Tunnel 10.96.0.10:80" + toGate},
		{"a pod that is bound itself, and would do without",
			[]proto.Message{pod("cart", "n2", "2.7", behindWaypoint, func(w *api.Workload) { w.Extensions = fallback() })}, "10.244.2.7:9999",
			"Tunnel 10.244.2.7:9999 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := workloadtest.Store(t, config, pod("web", "n1", "1.1"))
			workloadtest.Apply(t, store, test.mesh...)
			snapshot := store.Snapshot()
			web, _ := snapshot.WorkloadByUID(uid("web"))
			up, err := route.Decide(route.Request{Source: web, Destination: netip.MustParseAddrPort(test.to)}, snapshot, first)
			if got := say(up, err); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// Whatever waypoints there are, and in whatever state: nobody gets past them.
func TestNobodyGetsPastAWaypoint(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	ways, refusals := 0, 0
	for round := range 2000 {
		objects := []proto.Message{pod("web", "n1", "1.1")}
		if random.IntN(3) > 0 {
			objects = append(objects, gateService())
		}
		for i := range random.IntN(3) {
			change := func(w *api.Workload) {}
			switch random.IntN(5) {
			case 0:
				change = unhealthy
			case 1:
				change = plain
			case 2:
				change = func(w *api.Workload) { w.NativeTunnel = false }
			}
			objects = append(objects, gatePod([]string{"w0", "w1", "w2"}[i], "n1", []string{"3.7", "3.8", "3.9"}[i], change))
		}
		objects = append(objects, service("cart", []string{"10.96.0.10"}, boundTo),
			pod("cart", "n1", "1.7", serves(cart)), pod("cart2", "n2", "2.7", serves(cart)), pod("alone", "n2", "2.8", behindWaypoint))
		store := workloadtest.Store(t, config)
		workloadtest.Apply(t, store, objects...)
		snapshot := store.Snapshot()
		web, _ := snapshot.WorkloadByUID(uid("web"))
		for _, to := range []string{"10.96.0.10:80", "10.244.1.7:8080", "10.244.2.7:8080", "10.244.2.8:1234"} {
			up, err := route.Decide(route.Request{Source: web, Destination: netip.MustParseAddrPort(to), Asked: round%2 == 0}, snapshot, random.Uint64N)
			if err != nil {
				refusals++
				continue
			}
			ways++
			if up.Kind != route.Tunnel || !up.Workload.NativeTunnel || up.Identities[0].ServiceAccount != "waypoint" || up.Address.String() != to {
				t.Fatalf("%s in %v: %s", to, objects, say(up, nil))
			}
		}
	}
	if ways == 0 || refusals == 0 {
		t.Errorf("%d ways and %d refusals: the rounds show nothing", ways, refusals)
	}
}

// A pod of the waypoint that was tried in vain is not tried again, and its peers are
// those that it shares the work with.
func TestWaypointPodsAreChosenAsEndpointsAre(t *testing.T) {
	snapshot := workloadtest.Store(t, config, pod("web", "n1", "1.1"), gateService(), service("cart", []string{"10.96.0.10"}, boundTo),
		gatePod("w0", "n2", "2.1"), gatePod("w1", "n3", "3.1")).Snapshot()
	web, _ := snapshot.WorkloadByUID(uid("web"))
	r := route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80")}
	tried := map[string]bool{}
	for range 2 {
		up, err := route.Decide(r, snapshot, first)
		if err != nil || tried[up.Workload.Name] {
			t.Fatalf("after %v: %v %v", tried, up.Workload, err)
		}
		tried[up.Workload.Name] = true
		r.Avoid = append(r.Avoid, up.Workload.UID)
		peers := 0
		for range route.Peers(r, up, snapshot) {
			peers++
		}
		if peers != 2 || !up.Chosen() || up.Endpoint() != up.Via {
			t.Errorf("%d peers of %s at %s", peers, up.Workload.Name, up.Endpoint())
		}
	}
	if _, err := route.Decide(r, snapshot, first); err == nil {
		t.Error("both were tried, and there is a third")
	}
}
