package workload_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

const (
	podUID = "Kubernetes//Pod/shop/cart-1"
	svcKey = "shop/cart.shop.svc.cluster.local"
)

func pod(change func(*api.Workload)) *api.Workload {
	w := &api.Workload{
		Uid: podUID, Name: "cart-1", Namespace: "shop",
		Addresses: workloadtest.Addrs("10.244.1.7", "fd00:10::7"),
	}
	if change != nil {
		change(w)
	}
	return w
}

func service(change func(*api.Service)) *api.Service {
	s := &api.Service{
		Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc.cluster.local",
		Addresses: workloadtest.NetworkAddrs("10.96.0.10"),
		Ports:     []*api.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	if change != nil {
		change(s)
	}
	return s
}

func TestWorkloadIsReadWhole(t *testing.T) {
	store := workloadtest.Store(t, pod(func(w *api.Workload) {
		w.TunnelProtocol = api.TunnelProtocol_HBONE
		w.TrustDomain, w.ServiceAccount = "example.org", "cart"
		w.Node, w.ClusterId = "n1", "Kubernetes"
		w.Locality = &api.Locality{Region: "r", Zone: "z", Subzone: "s"}
		w.Status = api.WorkloadStatus_UNHEALTHY
		w.Capacity = wrapperspb.UInt32(3)
		w.WorkloadType, w.WorkloadName = api.WorkloadType_JOB, "cart"
		w.CanonicalName, w.CanonicalRevision = "cart", "v1"
		w.AuthorizationPolicies = []string{"shop/only-web"}
		w.Services = map[string]*api.PortList{svcKey: {Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: api.AppProtocol_HTTP2}}}}
	}))
	got, _ := store.Snapshot().WorkloadByUID(podUID)

	want := map[string]any{
		"Addresses":      []netip.Addr{netip.MustParseAddr("10.244.1.7"), netip.MustParseAddr("fd00:10::7")},
		"Protocol":       workload.HBONE,
		"Identity":       spiffe.ID{TrustDomain: "example.org", Namespace: "shop", ServiceAccount: "cart"},
		"Node":           "n1",
		"ClusterID":      "Kubernetes",
		"Locality":       workload.Locality{Region: "r", Zone: "z", Subzone: "s"},
		"Healthy":        false,
		"Weight":         uint32(3),
		"Kind":           "job",
		"Owner":          "cart",
		"CanonicalName":  "cart",
		"Authorizations": []string{"shop/only-web"},
		"Services":       map[string][]workload.Port{svcKey: {{Service: 80, Target: 8080, App: "HTTP2"}}},
	}
	for field, want := range want {
		if got := reflect.ValueOf(*got).FieldByName(field).Interface(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
}

// facts of the protocol: an identity's parts may be left out.
func TestWorkloadDefaults(t *testing.T) {
	store := workloadtest.Store(t, pod(nil))
	w, _ := store.Snapshot().WorkloadByUID(podUID)
	if want := (spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "default"}); w.Identity != want {
		t.Errorf("identity is %v, want %v", w.Identity, want)
	}
	if w.Protocol != workload.Plain || !w.Healthy || w.Weight != 1 || w.HostNetwork {
		t.Errorf("got %+v", w)
	}
}

// An IPv4 address in 16 bytes is the IPv4 address.
func TestMappedAddressIsIPv4(t *testing.T) {
	store := workloadtest.Store(t, pod(func(w *api.Workload) { w.Addresses = workloadtest.Addrs("::ffff:10.244.1.7") }))
	for _, addr := range []string{"10.244.1.7", "::ffff:10.244.1.7"} {
		if _, ok := store.Snapshot().WorkloadByAddr(netip.MustParseAddr(addr)); !ok {
			t.Errorf("%s is not found", addr)
		}
	}
}

func TestServiceIsReadWhole(t *testing.T) {
	affinity, err := anypb.New(&mesh.SessionAffinity{ClientIpTimeoutSeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	store := workloadtest.Store(t, service(func(s *api.Service) {
		s.Addresses = append(s.Addresses, &api.NetworkAddress{Network: "elsewhere", Address: workloadtest.Addr("10.96.0.11")})
		s.SubjectAltNames = []string{"spiffe://cluster.local/ns/shop/sa/gate"}
		s.LoadBalancing = &api.LoadBalancing{
			Mode:              api.LoadBalancing_FAILOVER,
			RoutingPreference: []api.LoadBalancing_Scope{api.LoadBalancing_NETWORK, api.LoadBalancing_NODE},
			HealthPolicy:      api.LoadBalancing_ALLOW_ALL,
		}
		s.Visibility = api.Service_NAMESPACE
		s.Waypoint = &api.GatewayAddress{
			Destination:   &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: "shop", Hostname: "waypoint"}},
			HboneMtlsPort: 15008,
		}
		s.Extensions = []*api.Extension{{Name: "somebody.else/s"}, {Name: workload.SessionAffinityExtension, Config: affinity}}
	}))
	got, ok := store.Snapshot().Service(svcKey)
	if !ok {
		t.Fatal("not found")
	}
	want := map[string]any{
		"Addresses":      []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		"Ports":          []workload.Port{{Service: 80, Target: 8080}},
		"Identities":     []spiffe.ID{{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "gate"}},
		"Waypoint":       &workload.Gateway{ServiceKey: "shop/waypoint", HBONEPort: 15008},
		"Mode":           workload.Failover,
		"Scopes":         []workload.Scope{workload.Network, workload.Node},
		"AllowUnhealthy": true,
		"NamespaceOnly":  true,
		"Affinity":       time.Minute,
	}
	for field, want := range want {
		if got := reflect.ValueOf(*got).FieldByName(field).Interface(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
}

// What cannot be read is rejected, and the error names the resource and the field.
func TestMalformedResourcesAreRejected(t *testing.T) {
	type (
		w = api.Workload
		s = api.Service
	)
	tests := []struct {
		message proto.Message
		field   string
	}{
		{pod(func(w *w) { w.Addresses = [][]byte{{10, 0, 0, 1}, {10, 0, 0}} }), "addresses[1]: 3 bytes"},
		{pod(func(w *w) { w.Addresses = [][]byte{{}} }), "addresses[0]: 0 bytes"},
		{pod(func(w *w) { w.Addresses = workloadtest.Addrs("127.0.0.1") }), "addresses[0]: 127.0.0.1"},
		{pod(func(w *w) { w.Addresses = workloadtest.Addrs("0.0.0.0") }), "addresses[0]"},
		{pod(func(w *w) { w.Addresses = workloadtest.Addrs("ff02::1") }), "addresses[0]"},
		{pod(func(w *w) { w.Uid = "" }), "uid: empty"},
		{pod(func(w *w) { w.Namespace = "" }), "namespace"},
		{pod(func(w *w) { w.Namespace = "shop/sa/admin" }), "namespace"},
		{pod(func(w *w) { w.ServiceAccount = "a/b" }), "service_account"},
		{pod(func(w *w) { w.TrustDomain = "Example" }), "trust_domain"},
		{pod(func(w *w) { w.TunnelProtocol = api.TunnelProtocol_LEGACY_ISTIO_MTLS }), "tunnel_protocol: LEGACY_ISTIO_MTLS"},
		{pod(func(w *w) { w.TunnelProtocol = 77 }), "tunnel_protocol: 77"},
		{pod(func(w *w) { w.Status = 77 }), "status: 77"},
		{pod(func(w *w) { w.NetworkMode = 77 }), "network_mode: 77"},
		{pod(func(w *w) { w.Services = map[string]*api.PortList{"cart": {}} }), `services: key "cart"`},
		{pod(func(w *w) { w.Services = map[string]*api.PortList{"a/b/c": {}} }), `services: key "a/b/c"`},
		{pod(func(w *w) { w.Services = map[string]*api.PortList{svcKey: {Ports: []*api.Port{{ServicePort: 80}}}} }), "ports[0].target_port: empty"},
		{pod(func(w *w) {
			w.Services = map[string]*api.PortList{svcKey: {Ports: []*api.Port{{ServicePort: 80, TargetPort: 65536}}}}
		}), "ports[0].target_port: 65536"},
		{pod(func(w *w) { w.Waypoint = &api.GatewayAddress{HboneMtlsPort: 15008} }), "waypoint.destination: empty"},
		{pod(func(w *w) { w.Waypoint = &api.GatewayAddress{} }), "waypoint.hbone_mtls_port: 0"},

		{service(func(s *s) { s.Hostname = "" }), "hostname"},
		{service(func(s *s) { s.Namespace = "" }), "namespace"},
		{service(func(s *s) { s.Ports = []*api.Port{{TargetPort: 80}} }), "ports[0].service_port: 0"},
		{service(func(s *s) { s.Addresses = []*api.NetworkAddress{{Address: []byte{1}}} }), "addresses[0].address: 1 bytes"},
		{service(func(s *s) { s.Addresses[0].Length = proto.Uint32(24) }), "addresses[0].length: 24"},
		{service(func(s *s) { s.SubjectAltNames = []string{"gate"} }), "subject_alt_names[0]"},
		{service(func(s *s) { s.LoadBalancing = &api.LoadBalancing{Mode: 77} }), "load_balancing.mode: 77"},
		{service(func(s *s) { s.LoadBalancing = &api.LoadBalancing{HealthPolicy: 77} }), "load_balancing.health_policy: 77"},
		{service(func(s *s) {
			s.LoadBalancing = &api.LoadBalancing{RoutingPreference: []api.LoadBalancing_Scope{api.LoadBalancing_UNSPECIFIED_SCOPE}}
		}), "load_balancing.routing_preference[0]"},
		{service(func(s *s) { s.Visibility = 77 }), "visibility: 77"},
		{service(func(s *s) { s.WeightedWaypoints = []*api.WeightedWaypoint{{Weight: 1}} }), "weighted_waypoints[0]"},
		{service(func(s *s) { s.Extensions = []*api.Extension{{Name: workload.SessionAffinityExtension}} }), "extensions[0].config"},

		{&mesh.TrustBundle{TrustDomain: "cluster.local"}, "roots: empty"},
		{&mesh.TrustBundle{TrustDomain: "cluster.local", Roots: []string{"junk"}}, "roots[0]: no PEM"},
		{&mesh.Config{}, "trust_domain: empty"},
		{&mesh.RevocationList{}, "trust_domain"},
		{revoked("", "1"), `issuer ""`},
		{revoked(strings.Repeat("A0", 32), "1"), "issuer"},
		{revoked(strings.Repeat("a0", 32)), "certificates[0].serials: empty"},
		{revoked(strings.Repeat("a0", 32), "01"), "leading zeros"},
		{revoked(strings.Repeat("a0", 32), "1", "FF"), "only hex digits"},
		{revoked(strings.Repeat("a0", 32), ""), "a positive number"},
		{revoked(strings.Repeat("a0", 32), strings.Repeat("f", 41)), "41 hex digits"},
		{&mesh.RevocationList{TrustDomain: "cluster.local", Identities: []*mesh.RevokedIdentity{{Identity: "web", BegunBefore: 1}}}, "identities[0].identity"},
		{&mesh.RevocationList{TrustDomain: "cluster.local", Identities: []*mesh.RevokedIdentity{{Identity: "spiffe://cluster.local/ns/shop/sa/web"}}}, "a moment is needed"},
		{&mesh.Config{TrustDomain: "cluster.local", PodRanges: []string{"10.244.0.0/16", "10.244"}}, "pod_ranges[1]"},
		{&mesh.Config{TrustDomain: "cluster.local", ServiceRanges: []string{"10.96"}}, "service_ranges[0]"},
	}
	for _, test := range tests {
		r := workloadtest.Resource(t, test.message)
		store := workload.NewStore()
		rejected := store.Apply(workload.Delta{Type: r.Body.GetTypeUrl(), Upserts: []workload.Resource{r}})
		if len(rejected) != 1 {
			t.Errorf("%s: accepted", test.field)
			continue
		}
		if text := rejected[0].Error(); !strings.Contains(text, test.field) || !strings.Contains(text, r.Name) {
			t.Errorf("error is %q, want it to name %q and %q", text, r.Name, test.field)
		}
		if got := store.Snapshot().Count(r.Body.GetTypeUrl()); got != 0 {
			t.Errorf("%s: %d resources in force", test.field, got)
		}
	}
}

// revoked is a list with what one issuer signed.
func revoked(issuer string, serials ...string) *mesh.RevocationList {
	return &mesh.RevocationList{TrustDomain: "cluster.local", Certificates: []*mesh.RevokedCertificates{{Issuer: issuer, Serials: serials}}}
}

// A resource must carry the name it is removed by, and be of its stream's type.
func TestNamesAndTypesMustMatch(t *testing.T) {
	misnamed := workloadtest.Resource(t, pod(nil))
	misnamed.Name = "Kubernetes//Pod/shop/other"
	empty := workload.Resource{Name: "empty", Body: &anypb.Any{TypeUrl: workload.AddressType}}
	missing := workload.Resource{Name: "missing"}
	otherType := workloadtest.Resource(t, &mesh.Config{TrustDomain: "cluster.local"})
	garbage := workload.Resource{Name: "garbage", Body: &anypb.Any{TypeUrl: workload.AddressType, Value: []byte{0xff, 0xff}}}

	for _, r := range []workload.Resource{misnamed, empty, missing, otherType, garbage} {
		if rejected := workload.NewStore().Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{r}}); len(rejected) != 1 {
			t.Errorf("%s: accepted", r.Name)
		}
	}
	if rejected := workload.NewStore().Apply(workload.Delta{Type: "type.googleapis.com/something.Else"}); len(rejected) != 1 {
		t.Error("unknown type: accepted")
	}
}

// Whatever the bytes, a store neither panics nor takes in what it should not.
func FuzzApplyAddress(f *testing.F) {
	for _, m := range []proto.Message{pod(nil), service(nil)} {
		r := workloadtest.Resource(f, m)
		f.Add(r.Name, r.Body.GetValue())
	}
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		store := workload.NewStore()
		delta := workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{
			{Name: name, Version: "1", Aliases: []string{name}, Body: &anypb.Any{TypeUrl: workload.AddressType, Value: body}},
		}}
		rejected := store.Apply(delta)
		snapshot := store.Snapshot()
		if got := snapshot.Count(workload.AddressType); got != 1-len(rejected) {
			t.Fatalf("%d rejected, %d in force", len(rejected), got)
		}
		for _, w := range snapshot.Workloads() {
			if w.UID != name {
				t.Fatalf("uid %q under the name %q", w.UID, name)
			}
			if id, err := spiffe.Parse(w.Identity.String()); err != nil || id != w.Identity {
				t.Fatalf("identity %q: %v", w.Identity, err)
			}
		}
		store.Apply(workload.Delta{Type: workload.AddressType, Removed: []string{name}})
		if got, want := store.Snapshot().Version(), workload.NewStore().Snapshot().Version(); got != want {
			t.Fatal("something is left after the removal")
		}
	})
}
