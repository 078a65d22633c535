// Package route decides where a connection that a local pod opens goes.
//
//	Decide(source, destination, snapshot) -> upstream, or a refusal with its reason
//
// In this order:
//  1. an unknown source, a loopback destination: refused
//  2. the source's own address: the source itself
//  3. an address of a service: one endpoint of the service, or refused
//  4. an address of a workload: that workload
//  5. an address whose resource could not be read, any while the mesh's
//     configuration is missing: refused
//  6. an address that may belong to the mesh for all we know: to be asked for
//  7. an address of pods' or Services' ranges that nobody knows, from a strict source: refused
//  8. anything else is outside the mesh and reached as it is
//
// What is bound to a waypoint is reached through it: a tunnel to one of the
// waypoint's pods, which is asked for what the source addressed (waypoint.go).
//
// A workload is reached by a tunnel if it takes tunnels, on the same node by
// the short way, and by plain TCP only if it takes none. One that refuses plaintext
// and is still to be captured is not reached at all.
//
// Invariants: Decide is pure: the same request, snapshot, load and picks give
// the same answer. What belongs to the mesh is never reached in another way than
// published; where that is not possible or not understood, the answer is a
// refusal.
//
// Choosing endpoints of services is package balance's job, opening connections outbound's, knowing the load and the failures of
// endpoints package endpoints', asking the controller feed's, policy the
// destination's.
package route

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/balance"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Ports that the mesh listens on in every captured pod.
const (
	OutboundPort  = 15001
	PlaintextPort = 15006
	HBONEPort     = 15008
)

// Kind is how a connection goes on.
type Kind uint8

const (
	// Tunnel: open a tunnel to Via, whose peer must have one of Identities,
	// and ask it for Address.
	Tunnel Kind = iota + 1
	// Local: Workload is captured on this node; Address is its own.
	Local
	// Plaintext: connect to Address as it is.
	Plaintext
	// Ask: whether Address belongs to the mesh is not known yet. Ask the
	// controller for it and decide again.
	Ask
)

func (k Kind) String() string {
	switch k {
	case Tunnel:
		return "Tunnel"
	case Local:
		return "Local"
	case Plaintext:
		return "Plaintext"
	case Ask:
		return "Ask"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Request is a connection that wants a way.
type Request struct {
	// Source is the pod that opens it; nil if unknown.
	Source *workload.Workload
	// Destination as the pod addressed it.
	Destination netip.AddrPort
	// Asked: the controller was asked for Destination, and there is nothing
	// of the mesh.
	Asked bool
	// Avoid are the UIDs of a service's endpoints that were tried in vain.
	Avoid []string
	// Endpoints, if not nil, tells how services' endpoints are doing.
	Endpoints balance.Endpoints
}

// Upstream is where a connection goes.
type Upstream struct {
	Kind Kind
	// Address is the real target, an endpoint's address and port.
	Address netip.AddrPort
	// Via is where the tunnel is opened to; only of a Tunnel.
	Via netip.AddrPort
	// Identities that the tunnel's peer may have; only of a Tunnel, never empty.
	Identities []spiffe.ID
	// Service that was addressed, and Workload that was chosen; nil if none is known.
	Service  *workload.Service
	Workload *workload.Workload
	// Nearness of a service's endpoint.
	Nearness balance.Nearness
	// Panic: the endpoint is ejected, and so are all others.
	Panic bool
	// Waypoint is the Service of the waypoint that the tunnel leads to, and Workload
	// its pod; nil if it leads to the destination itself.
	Waypoint *workload.Service
}

// Endpoint is where Workload is reached: what its load and its failures count for.
func (u Upstream) Endpoint() netip.AddrPort {
	if u.Waypoint != nil {
		return u.Via
	}
	return u.Address
}

// Chosen tells that there may be others than Workload, which was one of several.
func (u Upstream) Chosen() bool { return u.Service != nil || u.Waypoint != nil }

// Decide finds the way for r. Its error is always a *Refusal.
func Decide(r Request, snapshot *workload.Snapshot, pick balance.Picker) (Upstream, error) {
	up, err := decide(r, snapshot, pick)
	// That it took plaintext is of before.
	if err == nil && up.Kind == Plaintext && up.Workload != nil && snapshot.Unreadable(up.Workload.UID) {
		return Upstream{}, refuse(Unreadable, "what was said last of %s could not be read, and it took no tunnels before", up.Workload.UID)
	}
	return up, err
}

func decide(r Request, snapshot *workload.Snapshot, pick balance.Picker) (Upstream, error) {
	dst := netip.AddrPortFrom(r.Destination.Addr().Unmap(), r.Destination.Port())
	if r.Source == nil {
		return Upstream{}, refuse(UnknownSource, "nothing is known about the pod that connects to %s", dst)
	}
	if !dst.IsValid() || dst.Addr().IsLoopback() || dst.Addr().IsUnspecified() {
		return Upstream{}, refuse(Loop, "%s is inside the pod itself", dst)
	}
	if slices.Contains(r.Source.Addresses, dst.Addr()) && !r.Source.HostNetwork {
		return toWorkload(r.Source, r.Source, dst, nil)
	}
	if services := snapshot.ServicesByAddr(dst.Addr()); len(services) > 0 {
		return toService(r, services, dst, snapshot, pick)
	}
	if w, ok := snapshot.WorkloadByAddr(dst.Addr()); ok {
		direct := func() (Upstream, error) { return toWorkload(r.Source, w, dst, nil) }
		if b, ok := behind(w, dst.Port(), snapshot); ok {
			return toWaypoint(r, b, dst, snapshot, pick, direct)
		}
		return direct()
	}
	if rejection, ok := snapshot.RejectedByAddr(dst.Addr()); ok {
		return Upstream{}, refuse(Unreadable, "what %s stands for could not be read: %v", dst.Addr(), rejection)
	}
	if !snapshot.Configured() {
		return Upstream{}, refuse(NotConfigured, "whether %s is outside the mesh is not known yet", dst.Addr())
	}
	// An address that the cluster gives to pods or Services.
	ofCluster := snapshot.InPodRange(dst.Addr()) || snapshot.InServiceRange(dst.Addr())
	if !r.Asked && (snapshot.Partial() || ofCluster) {
		return Upstream{Kind: Ask, Address: dst}, nil
	}
	if strict(r.Source, snapshot) && ofCluster {
		return Upstream{}, refuse(StrictUnknown, "%s is an address of a pod or a Service, nobody knows of which, and the source is strict", dst.Addr())
	}
	return Upstream{Kind: Plaintext, Address: dst}, nil
}

// strict tells whether a source sends nothing in plaintext to what may be a pod of
// the mesh. As long as nothing is published of the source itself, it is what the
// strictest of its namespace may be.
func strict(source *workload.Workload, snapshot *workload.Snapshot) bool {
	if source.MutualTLS == workload.StrictMutualTLS {
		return true
	}
	if published, ok := snapshot.WorkloadByUID(source.UID); ok && published == source {
		return false
	}
	return snapshot.Namespace(source.Namespace).MutualTLS == workload.StrictMutualTLS
}

// toService goes to an endpoint of the service that has the destination's port:
// several may share an external address.
func toService(r Request, services []*workload.Service, dst netip.AddrPort, snapshot *workload.Snapshot, pick balance.Picker) (Upstream, error) {
	i := slices.IndexFunc(services, func(s *workload.Service) bool {
		_, ok := s.Port(dst.Port())
		return ok
	})
	if i < 0 {
		return Upstream{}, refuse(UnknownPort, "service %s has no port %d", services[0].Key, dst.Port())
	}
	service, source := services[i], r.Source
	if service.NamespaceOnly && source.Namespace != service.Namespace {
		return Upstream{}, refuse(NotVisible, "service %s is only for its own namespace, not for %s", service.Key, source.Namespace)
	}
	direct := func() (Upstream, error) { return toEndpoint(r, service, dst, snapshot, pick) }
	if service.Waypoint != nil {
		return toWaypoint(r, boundService(service), dst, snapshot, pick, direct)
	}
	return direct()
}

// toEndpoint goes to an endpoint of the service, through the endpoint's own waypoint
// if it has one.
func toEndpoint(r Request, service *workload.Service, dst netip.AddrPort, snapshot *workload.Snapshot, pick balance.Picker) (Upstream, error) {
	source := r.Source
	endpoint, ok := balance.Choose(r.balancing(service), snapshot, pick)
	if !ok {
		if w, ok := balance.Awaited(r.balancing(service), snapshot); ok {
			return Upstream{}, notCaptured(w)
		}
		return Upstream{}, refuse(NoEndpoint, "service %s has no usable endpoint for port %d", service.Key, dst.Port())
	}
	direct := func() (Upstream, error) {
		up, err := toWorkload(source, endpoint.Workload, endpoint.Target, service)
		up.Nearness, up.Panic = endpoint.Nearness, endpoint.Panic
		return up, err
	}
	if endpoint.Workload.Waypoint != nil && endpoint.Workload.UID != source.UID {
		return toWaypoint(r, boundWorkload(endpoint.Workload, service), endpoint.Target, snapshot, pick, direct)
	}
	return direct()
}

// Peers yields the endpoints that r might have got in place of up's, by uid and
// target: all that may be used, avoided and ejected ones too.
func Peers(r Request, up Upstream, snapshot *workload.Snapshot) iter.Seq2[string, netip.AddrPort] {
	if up.Waypoint == nil {
		return balance.Peers(r.balancing(up.Service), snapshot)
	}
	return balance.Peers(balance.Request{Source: r.Source, Service: up.Waypoint, Destination: up.Via, Avoid: r.Avoid, Endpoints: r.Endpoints}, snapshot)
}

// balancing is the request for an endpoint of the service.
func (r Request) balancing(service *workload.Service) balance.Request {
	return balance.Request{
		Source: r.Source, Service: service, Destination: netip.AddrPortFrom(r.Destination.Addr().Unmap(), r.Destination.Port()),
		Avoid: r.Avoid, Endpoints: r.Endpoints,
	}
}

// toWorkload goes to w at target, an address of its own, the way that w is published with.
func toWorkload(source, w *workload.Workload, target netip.AddrPort, service *workload.Service) (Upstream, error) {
	self := w.UID == source.UID
	up := Upstream{Address: target, Service: service, Workload: w}
	if (self || w.Protocol == workload.HBONE) && meshPort(target.Port()) {
		return Upstream{}, refuse(Loop, "port %d of %s is the mesh's own", target.Port(), w.UID)
	}
	switch {
	case self:
		up.Kind = Local
	case w.Awaited(target.Port()):
		return Upstream{}, notCaptured(w)
	case w.Protocol != workload.HBONE:
		up.Kind = Plaintext
	case capturedBeside(source, w):
		up.Kind = Local
	default:
		up.Kind = Tunnel
		up.Via = netip.AddrPortFrom(target.Addr(), HBONEPort)
		up.Identities = []spiffe.ID{w.Identity}
		if service != nil {
			up.Identities = append(up.Identities, service.Identities...)
		}
	}
	return up, nil
}

func notCaptured(w *workload.Workload) *Refusal {
	return refuse(NotCaptured, "%s refuses plaintext, and its node %s has not captured it yet", w.UID, w.Node)
}

// capturedBeside tells whether w's traffic is in the hands of the same node
// tunnel: not that of a workload with a tunnel of its own, such as a waypoint.
func capturedBeside(source, w *workload.Workload) bool {
	return w.Node != "" && w.Node == source.Node && w.ClusterID == source.ClusterID &&
		!w.NativeTunnel && !w.HostNetwork
}

func meshPort(port uint16) bool {
	return port == OutboundPort || port == PlaintextPort || port == HBONEPort
}
