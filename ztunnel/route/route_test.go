package route_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

const (
	hbone = api.TunnelProtocol_HBONE
	cart  = "shop/cart.shop.svc.cluster.local"
)

// uid of a pod of the shop.
func uid(name string) string { return workload.PodUID("Kubernetes", "shop", name) }

// pod of the shop, with one address per family: 10.244.X.Y and fd00:10::X:Y.
func pod(name, node, at string, changes ...func(*api.Workload)) *api.Workload {
	w := &api.Workload{
		Uid: uid(name), Name: name, Namespace: "shop", ServiceAccount: name,
		ClusterId: "Kubernetes", Node: node, TunnelProtocol: hbone,
		Addresses: workloadtest.Addrs("10.244."+at, "fd00:10::"+strings.ReplaceAll(at, ".", ":")),
	}
	for _, change := range changes {
		change(w)
	}
	return w
}

// serves makes a pod an endpoint of a service: its port 80 is the pod's 8080.
func serves(key string) func(*api.Workload) {
	return func(w *api.Workload) {
		if w.Services == nil {
			w.Services = map[string]*api.PortList{}
		}
		w.Services[key] = &api.PortList{Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}}
	}
}

func plain(w *api.Workload)       { w.TunnelProtocol = api.TunnelProtocol_NONE }
func hostNetwork(w *api.Workload) { w.NetworkMode = api.NetworkMode_HOST_NETWORK }
func unhealthy(w *api.Workload)   { w.Status = api.WorkloadStatus_UNHEALTHY }
func ipv4Only(w *api.Workload)    { w.Addresses = w.Addresses[:1] }
func behindWaypoint(w *api.Workload) {
	w.Waypoint = waypoint()
}
func weight(n uint32) func(*api.Workload) {
	return func(w *api.Workload) { w.Capacity = wrapperspb.UInt32(n) }
}
func in(region, zone string) func(*api.Workload) {
	return func(w *api.Workload) { w.Locality = &api.Locality{Region: region, Zone: zone} }
}

func waypoint() *api.GatewayAddress {
	return &api.GatewayAddress{
		Destination:   &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: "shop", Hostname: "waypoint.shop.svc.cluster.local"}},
		HboneMtlsPort: 15008,
	}
}

// service of the shop with port 80, at addresses.
func service(name string, addresses []string, changes ...func(*api.Service)) *api.Service {
	s := &api.Service{
		Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local",
		Addresses: workloadtest.NetworkAddrs(addresses...),
		Ports:     []*api.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	for _, change := range changes {
		change(s)
	}
	return s
}

func balanced(mode api.LoadBalancing_Mode, scopes ...api.LoadBalancing_Scope) func(*api.Service) {
	return func(s *api.Service) { s.LoadBalancing = &api.LoadBalancing{Mode: mode, RoutingPreference: scopes} }
}

var config = &mesh.Config{
	TrustDomain: "cluster.local", ClusterId: "Kubernetes",
	PodRanges: []string{"10.244.0.0/16", "fd00:10::/64"}, ServiceRanges: []string{"10.96.0.0/16", "fd00:96::/112"},
}

// first picks the first endpoint, last the last one.
func first(uint64) uint64  { return 0 }
func last(n uint64) uint64 { return n - 1 }

// say writes a decision down in one line.
func say(up route.Upstream, err error) string {
	var refusal *route.Refusal
	if errors.As(err, &refusal) {
		return "refuse " + string(refusal.Reason)
	}
	line := up.Kind.String() + " " + up.Address.String()
	if up.Kind == route.Tunnel {
		line += " via " + up.Via.String() + " as"
		for _, id := range up.Identities {
			line += " " + id.String()
		}
	}
	return line
}

// What happens to a connection that pod "web" on node n1 opens.
func TestDecide(t *testing.T) {
	clusterIPs := []string{"10.96.0.10", "fd00:96::10"}
	tests := []struct {
		name string
		// mesh besides web itself.
		mesh []proto.Message
		to   string
		want string
	}{
		// Pods by their own address.
		{"pod on another node",
			[]proto.Message{pod("cart", "n2", "2.7")}, "10.244.2.7:8080",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"pod on another node, IPv6",
			[]proto.Message{pod("cart", "n2", "2.7")}, "[fd00:10::2:7]:8080",
			"Tunnel [fd00:10::2:7]:8080 via [fd00:10::2:7]:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"IPv4 in an IPv6 socket",
			[]proto.Message{pod("cart", "n2", "2.7")}, "[::ffff:10.244.2.7]:8080",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"identity left out by the controller",
			[]proto.Message{pod("cart", "n2", "2.7", func(w *api.Workload) { w.ServiceAccount = "" })}, "10.244.2.7:8080",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/default"},
		{"identity of another trust domain",
			[]proto.Message{pod("cart", "n2", "2.7", func(w *api.Workload) { w.TrustDomain = "example.org" })}, "10.244.2.7:8080",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://example.org/ns/shop/sa/cart"},
		{"pod on the same node",
			[]proto.Message{pod("cart", "n1", "1.7")}, "10.244.1.7:8080",
			"Local 10.244.1.7:8080"},
		{"waypoint on the same node: it has a tunnel of its own",
			[]proto.Message{pod("gate", "n1", "1.7", func(w *api.Workload) { w.NativeTunnel = true })}, "10.244.1.7:8080",
			"Tunnel 10.244.1.7:8080 via 10.244.1.7:15008 as spiffe://cluster.local/ns/shop/sa/gate"},
		{"pod of another cluster whose node has the same name",
			[]proto.Message{pod("cart", "n1", "1.7", func(w *api.Workload) { w.ClusterId = "other" })}, "10.244.1.7:8080",
			"Tunnel 10.244.1.7:8080 via 10.244.1.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"pod that is not enrolled",
			[]proto.Message{pod("old", "n2", "2.7", plain)}, "10.244.2.7:8080",
			"Plaintext 10.244.2.7:8080"},
		{"pod that is not enrolled, same node",
			[]proto.Message{pod("old", "n1", "1.7", plain)}, "10.244.1.7:8080",
			"Plaintext 10.244.1.7:8080"},
		{"pod behind a waypoint",
			[]proto.Message{pod("cart", "n2", "2.7", behindWaypoint)}, "10.244.2.7:8080",
			"refuse WaypointUnavailable"},

		// The pod itself.
		{"own address", nil, "10.244.1.1:8080", "Local 10.244.1.1:8080"},
		{"own address, claimed by another pod too",
			[]proto.Message{pod("a", "n2", "1.1")}, "10.244.1.1:8080", "Local 10.244.1.1:8080"},
		{"loopback", nil, "127.0.0.1:8080", "refuse Loop"},
		{"loopback, IPv6", nil, "[::1]:8080", "refuse Loop"},
		{"loopback in an IPv6 socket", nil, "[::ffff:127.0.0.1]:8080", "refuse Loop"},
		{"unspecified", nil, "0.0.0.0:8080", "refuse Loop"},

		// The mesh's own ports.
		{"own outbound port", nil, "10.244.1.1:15001", "refuse Loop"},
		{"own plaintext port", nil, "10.244.1.1:15006", "refuse Loop"},
		{"own HBONE port", nil, "10.244.1.1:15008", "refuse Loop"},
		{"HBONE port of a mesh pod",
			[]proto.Message{pod("cart", "n2", "2.7")}, "10.244.2.7:15008", "refuse Loop"},
		{"HBONE port of a mesh pod, through a service",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", func(w *api.Workload) {
				w.Services = map[string]*api.PortList{cart: {Ports: []*api.Port{{ServicePort: 80, TargetPort: 15008}}}}
			})}, "10.96.0.10:80", "refuse Loop"},
		{"port 15008 of a pod outside the mesh is just a port",
			[]proto.Message{pod("old", "n2", "2.7", plain)}, "10.244.2.7:15008", "Plaintext 10.244.2.7:15008"},
		{"port 15008 of a stranger is just a port", nil, "192.0.2.1:15008", "Plaintext 192.0.2.1:15008"},

		// Services.
		{"service",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"service, IPv6: the endpoint's IPv6 address",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart))}, "[fd00:96::10]:80",
			"Tunnel [fd00:10::2:7]:8080 via [fd00:10::2:7]:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"service, IPv6, only endpoint has IPv4 alone",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart), ipv4Only)}, "[fd00:96::10]:80",
			"refuse NoEndpoint"},
		{"service with names of its own: accepted besides the endpoint's",
			[]proto.Message{
				service("cart", clusterIPs, func(s *api.Service) { s.SubjectAltNames = []string{"spiffe://cluster.local/ns/shop/sa/gate"} }),
				pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart spiffe://cluster.local/ns/shop/sa/gate"},
		{"service, endpoint on the same node",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n1", "1.7", serves(cart))}, "10.96.0.10:80",
			"Local 10.244.1.7:8080"},
		{"service, endpoint is the pod itself",
			[]proto.Message{service("cart", clusterIPs), pod("web", "n1", "1.1", serves(cart))}, "10.96.0.10:80",
			"Local 10.244.1.1:8080"},
		{"service, endpoint is the pod itself, not published as captured yet",
			[]proto.Message{service("cart", clusterIPs), pod("web", "n1", "1.1", serves(cart), plain)}, "10.96.0.10:80",
			"Local 10.244.1.1:8080"},
		{"service, endpoint not enrolled",
			[]proto.Message{service("cart", clusterIPs), pod("old", "n2", "2.7", serves(cart), plain)}, "10.96.0.10:80",
			"Plaintext 10.244.2.7:8080"},
		{"service, endpoint on the host network, such as the Kubernetes API",
			[]proto.Message{service("cart", clusterIPs), pod("api", "n2", "2.7", serves(cart), plain, hostNetwork)}, "10.96.0.10:80",
			"Plaintext 10.244.2.7:8080"},
		{"service, unknown port",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:81",
			"refuse UnknownPort"},
		{"service without endpoints",
			[]proto.Message{service("cart", clusterIPs)}, "10.96.0.10:80", "refuse NoEndpoint"},
		{"service without endpoints, though the controller says to pass on",
			[]proto.Message{service("cart", clusterIPs, balanced(api.LoadBalancing_PASSTHROUGH))}, "10.96.0.10:80",
			"refuse NoEndpoint"},
		{"service, endpoint lacks the port",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", func(w *api.Workload) {
				w.Services = map[string]*api.PortList{cart: {Ports: []*api.Port{{ServicePort: 81, TargetPort: 8081}}}}
			})}, "10.96.0.10:80", "refuse NoEndpoint"},
		{"service, endpoint unhealthy",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart), unhealthy)}, "10.96.0.10:80",
			"refuse NoEndpoint"},
		{"service that takes unhealthy endpoints",
			[]proto.Message{
				service("cart", clusterIPs, func(s *api.Service) {
					s.LoadBalancing = &api.LoadBalancing{HealthPolicy: api.LoadBalancing_ALLOW_ALL}
				}),
				pod("cart", "n2", "2.7", serves(cart), unhealthy)}, "10.96.0.10:80",
			"Tunnel 10.244.2.7:8080 via 10.244.2.7:15008 as spiffe://cluster.local/ns/shop/sa/cart"},
		{"service, endpoint in another network",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart), func(w *api.Workload) { w.Network = "other" })}, "10.96.0.10:80",
			"refuse NoEndpoint"},
		{"service, endpoint takes no more traffic",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart), weight(0))}, "10.96.0.10:80",
			"refuse NoEndpoint"},
		{"service behind a waypoint",
			[]proto.Message{service("cart", clusterIPs, func(s *api.Service) { s.Waypoint = waypoint() }), pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80",
			"refuse WaypointUnavailable"},
		{"service behind weighted waypoints",
			[]proto.Message{
				service("cart", clusterIPs, func(s *api.Service) {
					s.WeightedWaypoints = []*api.WeightedWaypoint{{Destination: waypoint(), Weight: 1}}
				}),
				pod("cart", "n2", "2.7", serves(cart))}, "10.96.0.10:80",
			"refuse WaypointUnavailable"},
		{"service, endpoint behind a waypoint",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n2", "2.7", serves(cart), behindWaypoint)}, "10.96.0.10:80",
			"refuse WaypointUnavailable"},
		{"service for its own namespace, called from it",
			[]proto.Message{service("cart", clusterIPs, func(s *api.Service) { s.Visibility = api.Service_NAMESPACE }), pod("cart", "n1", "1.7", serves(cart))}, "10.96.0.10:80",
			"Local 10.244.1.7:8080"},
		{"service for its own namespace, called from another",
			[]proto.Message{service("cart", clusterIPs, func(s *api.Service) { s.Namespace, s.Visibility = "bank", api.Service_NAMESPACE })}, "10.96.0.10:80",
			"refuse NotVisible"},
		{"two services share an external address: the port decides",
			[]proto.Message{
				service("a", []string{"192.0.2.10"}, func(s *api.Service) { s.Ports[0].ServicePort = 443 }),
				service("cart", []string{"192.0.2.10"}), pod("cart", "n1", "1.7", serves(cart))}, "192.0.2.10:80",
			"Local 10.244.1.7:8080"},

		// Outside the mesh.
		{"a stranger", nil, "192.0.2.1:443", "Plaintext 192.0.2.1:443"},
		{"a stranger, IPv6", nil, "[2001:db8::1]:443", "Plaintext [2001:db8::1]:443"},
		{"the node, also where its pods are known",
			[]proto.Message{pod("agent", "n2", "2.7", plain, func(w *api.Workload) {
				hostNetwork(w)
				w.Addresses = workloadtest.Addrs("172.30.0.2")
			})}, "172.30.0.2:30080",
			"Plaintext 172.30.0.2:30080"},
		{"unknown address among the pods'", nil, "10.244.9.9:8080", "Ask 10.244.9.9:8080"},
		{"unknown address among the pods', IPv6", nil, "[fd00:10::9:9]:8080", "Ask [fd00:10::9:9]:8080"},
		{"unknown address among the Services'", nil, "10.96.0.10:80", "Ask 10.96.0.10:80"},
		{"unknown address among the Services', IPv6", nil, "[fd00:96::10]:80", "Ask [fd00:96::10]:80"},
		{"unknown address among the Services', as another one is known",
			[]proto.Message{service("cart", clusterIPs), pod("cart", "n1", "1.7", serves(cart))}, "10.96.0.11:80", "Ask 10.96.0.11:80"},
		{"an unknown load balancer's address", nil, "192.0.2.10:80", "Plaintext 192.0.2.10:80"},
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

func TestUnknownSourceIsRefused(t *testing.T) {
	store := workloadtest.Store(t, config, pod("cart", "n2", "2.7"))
	for _, to := range []string{"10.244.2.7:8080", "192.0.2.1:443"} {
		got := say(route.Decide(route.Request{Destination: netip.MustParseAddrPort(to)}, store.Snapshot(), first))
		if got != "refuse UnknownSource" {
			t.Errorf("%s: %s", to, got)
		}
	}
}

// An address that the controller does not know either is outside the mesh.
func TestAfterTheControllerWasAsked(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"))
	web, _ := store.Snapshot().WorkloadByUID(uid("web"))
	for to, found := range map[string]string{"10.244.9.9:8080": "Local 10.244.9.9:8080", "10.96.0.10:80": "Local 10.244.9.9:8080"} {
		r := route.Request{Source: web, Destination: netip.MustParseAddrPort(to), Asked: true}
		if got := say(route.Decide(r, store.Snapshot(), first)); got != "Plaintext "+to {
			t.Errorf("controller knows nothing: %s", got)
		}
		after := workloadtest.Store(t, config, pod("web", "n1", "1.1"), service("cart", []string{"10.96.0.10"}), pod("new", "n1", "9.9", serves(cart)))
		if got := say(route.Decide(r, after.Snapshot(), first)); got != found {
			t.Errorf("it became known meanwhile: %s", got)
		}
	}
}

// With a partial snapshot any address may be one of the mesh, an external one too.
func TestPartialSnapshotAsksForEverything(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"))
	store.SetPartial()
	web, _ := store.Snapshot().WorkloadByUID(uid("web"))
	r := route.Request{Source: web, Destination: netip.MustParseAddrPort("192.0.2.10:80")}
	if got := say(route.Decide(r, store.Snapshot(), first)); got != "Ask 192.0.2.10:80" {
		t.Errorf("not asked: %s", got)
	}
	r.Asked = true
	if got := say(route.Decide(r, store.Snapshot(), first)); got != "Plaintext 192.0.2.10:80" {
		t.Errorf("asked: %s", got)
	}
}

// Without the mesh's configuration nothing counts as outside; what is known
// of the mesh is still reached.
func TestWithoutConfig(t *testing.T) {
	store := workloadtest.Store(t, pod("web", "n1", "1.1"), pod("cart", "n1", "1.7"))
	web, _ := store.Snapshot().WorkloadByUID(uid("web"))
	for to, want := range map[string]string{
		"192.0.2.1:443":   "refuse NotConfigured",
		"10.244.9.9:8080": "refuse NotConfigured",
		"10.244.1.7:8080": "Local 10.244.1.7:8080",
	} {
		for _, asked := range []bool{false, true} {
			got := say(route.Decide(route.Request{Source: web, Destination: netip.MustParseAddrPort(to), Asked: asked}, store.Snapshot(), first))
			if got != want {
				t.Errorf("%s: got %s, want %s", to, got, want)
			}
		}
	}
}

// The address of a pod or service whose resource could not be read must not
// pass for a stranger's.
func TestUnreadableResourcesAreRefused(t *testing.T) {
	store := workloadtest.Store(t, config, pod("web", "n1", "1.1"))
	var delta workload.Delta
	delta.Type = workload.AddressType
	for _, m := range []proto.Message{
		pod("future", "n2", "2.7", func(w *api.Workload) { w.TunnelProtocol = 77 }),
		service("future", []string{"10.96.0.10"}, balanced(77)),
	} {
		delta.Upserts = append(delta.Upserts, workloadtest.Resource(t, m))
	}
	if rejected := store.Apply(delta); len(rejected) != 2 {
		t.Fatalf("rejected: %v", rejected)
	}
	web, _ := store.Snapshot().WorkloadByUID(uid("web"))
	for _, to := range []string{"10.244.2.7:8080", "10.96.0.10:80"} {
		got := say(route.Decide(route.Request{Source: web, Destination: netip.MustParseAddrPort(to), Asked: true}, store.Snapshot(), first))
		if got != "refuse Unreadable" {
			t.Errorf("%s: %s", to, got)
		}
	}
}
