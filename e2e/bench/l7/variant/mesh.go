package variant

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	clusterID = "bench"
	gateway   = "waypoint"
	podName   = "waypoint-1"
	// allowPolicy and denyPolicy apply to all requests.
	allowPolicy = "allow-clients"
	denyPolicy  = "deny-admin"
)

// waypointID is the waypoint's own.
var waypointID = spiffe.ID{TrustDomain: pki.ClientID.TrustDomain, Namespace: pki.ClientID.Namespace, ServiceAccount: gateway}

// front is what clients ask for: the Service that the routes are attached to.
var front = netip.MustParseAddrPort("10.200.0.1:80")

func hostname(service string) string {
	return service + "." + waypointID.Namespace + ".svc.cluster.local"
}

func keyOf(service string) string {
	return workload.ServiceKey(waypointID.Namespace, hostname(service))
}

// world is all that there is in the mesh: the client, the backends with a Service each,
// and the front with its routes and policies. Endpoints take tunnels, or else plain TCP.
func (s Site) world(tunnels bool, roots ...string) []proto.Message {
	trust := waypointID.TrustDomain
	all := []proto.Message{
		&mesh.Config{TrustDomain: trust, ClusterId: clusterID, PodRanges: []string{"10.0.0.0/8"}},
		s.workload("client", s.Client.IPv4, pki.ClientID, tunnels, nil),
		service("front", front.Addr(), uint32(front.Port()), uint32(front.Port())),
		s.binding(),
		policy(allowPolicy, mesh.RequestPolicy_ALLOW, &mesh.RequestRule{
			From: []*mesh.RequestSource{{Principals: []*mesh.StringPattern{exactly(principal(pki.ClientID))}}},
			To:   []*mesh.RequestOperation{{Methods: []*mesh.StringPattern{exactly("GET"), exactly("POST")}}},
		}),
		policy(denyPolicy, mesh.RequestPolicy_DENY, &mesh.RequestRule{
			To: []*mesh.RequestOperation{{Paths: []*mesh.StringPattern{{Match: &mesh.StringPattern_Prefix{Prefix: plan.Forbidden}}}}},
		}),
	}
	if len(roots) > 0 {
		all = append(all, &mesh.TrustBundle{TrustDomain: trust, Roots: roots})
	}
	ports := map[string]*api.PortList{}
	for i, name := range plan.Backends {
		backend := service(name, netip.AddrFrom4([4]byte{10, 200, 1, byte(i + 1)}), 80, uint32(plan.FirstPort+i))
		ports[keyOf(name)] = &api.PortList{Ports: backend.GetPorts()}
		all = append(all, backend)
	}
	return append(all, s.workload("backend", s.Backend.IPv4, pki.ServerID, tunnels, ports))
}

// principal is how policies write an identity.
func principal(id spiffe.ID) string {
	return id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

func exactly(s string) *mesh.StringPattern {
	return &mesh.StringPattern{Match: &mesh.StringPattern_Exact{Exact: s}}
}

func policy(name string, action mesh.RequestPolicy_Action, rule *mesh.RequestRule) *mesh.RequestPolicy {
	return &mesh.RequestPolicy{Namespace: waypointID.Namespace, Name: name, Action: action, Rules: []*mesh.RequestRule{rule}}
}

func (s Site) workload(name string, addr netip.Addr, id spiffe.ID, tunnels bool, services map[string]*api.PortList) *api.Workload {
	protocol := api.TunnelProtocol_NONE
	if tunnels {
		protocol = api.TunnelProtocol_HBONE
	}
	return &api.Workload{
		Uid: workload.PodUID(clusterID, id.Namespace, name), Name: name, Namespace: id.Namespace, TrustDomain: id.TrustDomain,
		ServiceAccount: id.ServiceAccount, ClusterId: clusterID, Node: name, TunnelProtocol: protocol, Addresses: [][]byte{addr.AsSlice()},
		WorkloadName: name, CanonicalName: name, Services: services,
	}
}

func service(name string, addr netip.Addr, port, target uint32) *api.Service {
	return &api.Service{
		Name: name, Namespace: waypointID.Namespace, Hostname: hostname(name), Addresses: []*api.NetworkAddress{{Address: addr.AsSlice()}},
		Ports: []*api.Port{{ServicePort: port, TargetPort: target, AppProtocol: api.AppProtocol_HTTP11}},
	}
}

func (s Site) binding() *mesh.Binding {
	b := &mesh.Binding{
		Target:   &mesh.Binding_Service{Service: keyOf("front")},
		Waypoint: waypointID.Namespace + "/" + gateway,
		Policies: []string{waypointID.Namespace + "/" + allowPolicy, waypointID.Namespace + "/" + denyPolicy},
	}
	for i, r := range plan.List(s.Routes) {
		match := &mesh.RouteMatch{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Prefix{Prefix: r.Prefix}}}
		if r.Header != "" {
			match.Headers = []*mesh.ValueMatch{{Name: r.Header, Match: &mesh.ValueMatch_Exact{Exact: r.Value}}}
		}
		rule := &mesh.RouteRule{Matches: []*mesh.RouteMatch{match}}
		for _, to := range r.Backends {
			rule.Backends = append(rule.Backends, &mesh.RouteBackend{Service: keyOf(to.Name), Port: 80, Weight: uint32(to.Weight)})
		}
		b.Routes = append(b.Routes, &mesh.Route{
			Kind: mesh.Route_HTTP, Namespace: waypointID.Namespace, Name: r.Name, Created: int64(i + 1), Hostnames: []string{plan.Host},
			Rules: []*mesh.RouteRule{rule},
		})
	}
	return b
}

// resource is a message as a controller sends it.
func resource(message proto.Message) (workload.Resource, error) {
	var name string
	body := message
	switch m := message.(type) {
	case *api.Workload:
		name, body = m.GetUid(), &api.Address{Type: &api.Address_Workload{Workload: m}}
	case *api.Service:
		name, body = workload.ServiceKey(m.GetNamespace(), m.GetHostname()), &api.Address{Type: &api.Address_Service{Service: m}}
	case *mesh.Config:
		name = workload.ConfigName
	case *mesh.TrustBundle:
		name = m.GetTrustDomain()
	case *mesh.Binding:
		name = m.GetService()
	case *mesh.RequestPolicy:
		name = m.GetNamespace() + "/" + m.GetName()
	default:
		return workload.Resource{}, fmt.Errorf("%T is no resource", message)
	}
	packed, err := anypb.New(body)
	if err != nil {
		return workload.Resource{}, fmt.Errorf("encode %s: %w", name, err)
	}
	sum := sha256.Sum256(packed.GetValue())
	return workload.Resource{Name: name, Version: hex.EncodeToString(sum[:8]), Body: packed}, nil
}
