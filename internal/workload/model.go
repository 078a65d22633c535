// Package workload is the mesh as a data plane sees it: workloads, services and
// what goes with them, parsed once from the wire and kept in immutable snapshots.
//
//	model.go policy.go     the structs: addresses as netip, identities as spiffe.ID
//	parse*.go              one resource of the wire -> one struct, or an error that names the field
//	store.go addresses.go  apply deltas, publish a Snapshot; named.go: what is found by name alone
//	snapshot.go            what readers ask
//	authorizations.go      which policies decide on connections to a workload
//	table.go index.go      maps whose copy costs as much as what changed, not as what they hold
//	digest.go              the version of the whole, from the versions of its parts
//
// Invariants: a Snapshot and everything reached from it never changes. A
// resource that cannot be read leaves its former state in place and is
// remembered: its addresses are refused by route, never taken for unknown ones, and
// who decides by it takes the strictest for it. A policy that cannot be read denies
// instead, where it may apply; what a waypoint cannot read it has not got. So is
// what of our own messages this version does not know: see package skew.
// What a field's unknown value would mean is never guessed.
//
// Getting resources from a controller is feed's job, choosing endpoints route's.
package workload

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Type URLs of the resources that make up a mesh.
const (
	AddressType        = "type.googleapis.com/istio.workload.Address"
	AuthorizationType  = "type.googleapis.com/istio.security.Authorization"
	TrustBundleType    = "type.googleapis.com/ambit.mesh.TrustBundle"
	RevocationListType = "type.googleapis.com/ambit.mesh.RevocationList"
	ConfigType         = "type.googleapis.com/ambit.mesh.Config"
	NamespaceType      = "type.googleapis.com/ambit.mesh.Namespace"
	EgressPolicyType   = "type.googleapis.com/ambit.mesh.EgressPolicy"
	RequestPolicyType  = "type.googleapis.com/ambit.mesh.RequestPolicy"
	BindingType        = "type.googleapis.com/ambit.mesh.Binding"

	RequestAuthenticationType = "type.googleapis.com/ambit.mesh.RequestAuthentication"
)

// Types lists all of them, in the order in which a client asks for them: what
// other types are judged by comes first.
var Types = [...]string{ConfigType, TrustBundleType, RevocationListType, NamespaceType, AuthorizationType, EgressPolicyType, AddressType}

// WaypointTypes are those of them and those that only waypoints ask for, in order.
var WaypointTypes = [...]string{ConfigType, TrustBundleType, RevocationListType, NamespaceType, AuthorizationType, EgressPolicyType,
	RequestAuthenticationType, RequestPolicyType, BindingType, AddressType}

// IsWaypointType tells whether only waypoints ask for a type, each for what is its own.
func IsWaypointType(typeURL string) bool {
	return typeURL == RequestAuthenticationType || typeURL == RequestPolicyType || typeURL == BindingType
}

// WaypointAlias is the key under which a waypoint, the Gateway of this name, asks
// for these types.
func WaypointAlias(namespace, name string) string { return "waypoint/" + namespace + "/" + name }

const (
	// ConfigName is the name of the one Config resource.
	ConfigName = "mesh"
	// SessionAffinityExtension is the name of the Extension with a SessionAffinity.
	SessionAffinityExtension = "ambit.mesh/session-affinity"
	// MutualTLSExtension is the name of the Extension with a MutualTLS.
	MutualTLSExtension = "ambit.mesh/mutual-tls"
	// WaypointPoliciesExtension is the name of the Extension with WaypointPolicies.
	WaypointPoliciesExtension = "ambit.mesh/waypoint-policies"
	// WaypointFallbackExtension is the name of the Extension with a WaypointFallback.
	WaypointFallbackExtension = "ambit.mesh/waypoint-fallback"
	// WaypointAnnouncedExtension is the name of the Extension with a WaypointAnnounced.
	WaypointAnnouncedExtension = "ambit.mesh/waypoint-announced"
	// EgressPoliciesExtension is the name of the Extension with EgressPolicies.
	EgressPoliciesExtension = "ambit.mesh/egress-policies"
	// DefaultTrustDomain stands for a trust domain that was left out.
	DefaultTrustDomain = "cluster.local"
	// DefaultServiceAccount stands for a service account that was left out.
	DefaultServiceAccount = "default"
)

// PodUID is the primary key of the workload that a pod is.
func PodUID(clusterID, namespace, name string) string {
	return clusterID + "//Pod/" + namespace + "/" + name
}

// ServiceKey is the primary key of a service.
func ServiceKey(namespace, hostname string) string { return namespace + "/" + hostname }

// AddressKey is the alias key of whatever has an address in the local network.
func AddressKey(addr netip.Addr) string { return "/" + normal(addr).String() }

// ParseAddressKey is the inverse of AddressKey. Keys of other networks are not
// understood.
func ParseAddressKey(key string) (netip.Addr, bool) {
	text, ok := strings.CutPrefix(key, "/")
	if !ok {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(text)
	return normal(addr), err == nil
}

// normal is the form in which addresses are compared: IPv4 as four bytes, no zone.
func normal(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// Protocol is how a workload is reached.
type Protocol uint8

const (
	// Plain: plain TCP to its own port.
	Plain Protocol = iota
	// HBONE: through a mutual TLS tunnel to port 15008, nothing else.
	HBONE
)

func (p Protocol) String() string {
	if p == HBONE {
		return "HBONE"
	}
	return "NONE"
}

// Workload is one instance that has addresses and an identity: a pod, or an
// endpoint that is none.
type Workload struct {
	UID       string
	Name      string
	Namespace string
	// Addresses are unique, IPv4 as four bytes.
	Addresses []netip.Addr
	Network   string
	ClusterID string
	Node      string
	Locality  Locality
	Identity  spiffe.ID

	Protocol Protocol
	// HostNetwork: the addresses are the node's and identify nobody.
	HostNetwork bool
	// NativeTunnel: it speaks HBONE itself, no node tunnel stands before it.
	NativeTunnel bool
	// Healthy is false when no health-aware service may use it.
	Healthy bool
	// Weight is its share among the endpoints of a service; 0 means no traffic.
	Weight uint32
	// Services has the ports by the keys of the services that use it now.
	Services map[string][]Port

	// Waypoint, if not nil, is where traffic to it must pass.
	Waypoint *Gateway
	// WaypointFallback: as long as the waypoint has no endpoint, it is reached without.
	WaypointFallback bool
	// WaypointAnnounced is one whose word is taken, though clients need not come through it.
	WaypointAnnounced *Gateway
	// WaypointPolicies names the RequestPolicies that a waypoint asks before it sends
	// a request here, sorted.
	WaypointPolicies []string
	// Authorizations names the selector policies that apply to it.
	Authorizations []string
	// MutualTLS is how strictly its node keeps plaintext away from it.
	MutualTLS MutualTLSMode
	// StrictPorts refuse plaintext whatever MutualTLS is. See Awaited and TunnelsOnly.
	StrictPorts []uint16
	// AwaitsCapture: it is to be captured, and its node has not said that it is.
	AwaitsCapture bool
	// EgressPolicies names the policies that decide on its way out of the mesh,
	// sorted: see Snapshot.EgressPolicies.
	EgressPolicies []string

	// Canonical name and revision, Kind and Owner are for metrics and logs.
	CanonicalName     string
	CanonicalRevision string
	// Kind of the controller that made it: deployment, cronjob, pod, job.
	Kind  string
	Owner string

	digest digest
}

// Address of the workload in the family of addr.
func (w *Workload) Address(family netip.Addr) (netip.Addr, bool) {
	want := normal(family).Is4()
	for _, a := range w.Addresses {
		if a.Is4() == want {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// TunnelsOnly tells that the nodes send nothing in plaintext to all of its ports, or
// to which: its addresses are its own, it is captured or to be, and strict.
func (w *Workload) TunnelsOnly() (all bool, ports []uint16) {
	if !identifies(w) || w.NativeTunnel || w.Protocol != HBONE && !w.AwaitsCapture {
		return false, nil
	}
	if w.MutualTLS == StrictMutualTLS {
		return true, nil // single ports may take plaintext, of whoever knows no tunnels
	}
	return false, w.StrictPorts
}

// Awaited tells that nobody may be sent to a port of the workload yet: it takes no
// tunnels before it is captured, and refuses plaintext.
func (w *Workload) Awaited(port uint16) bool {
	return w.AwaitsCapture && (w.MutualTLS == StrictMutualTLS || slices.Contains(w.StrictPorts, port))
}

// Target is the workload's own port for a port of a service.
func (w *Workload) Target(serviceKey string, servicePort uint16) (uint16, bool) {
	for _, p := range w.Services[serviceKey] {
		if p.Service == servicePort {
			return p.Target, true
		}
	}
	return 0, false
}

// Locality is where a workload runs; empty parts are unknown.
type Locality struct {
	Region, Zone, Subzone string
}

// Port of a service, TCP.
type Port struct {
	Service uint16
	// Target is the endpoint's port; 0 on a Service whose target port has a
	// name, which only its endpoints know.
	Target uint16
	// App is what the port speaks, as far as declared: HTTP11, HTTP2, GRPC,
	// TCP, TLS, or empty.
	App string
}

// Gateway is where a waypoint is found.
type Gateway struct {
	// ServiceKey, or else Address.
	ServiceKey string
	Address    netip.Addr
	HBONEPort  uint16
}

// Mode is how strictly locality decides between endpoints.
type Mode uint8

const (
	// AnyLocality: all endpoints are equal.
	AnyLocality Mode = iota
	// Strict: only endpoints that match every scope.
	Strict
	// Failover: the endpoints that match the most scopes, counted from the first.
	Failover
)

// Scope is one thing that a source and an endpoint can have in common.
type Scope uint8

// The scopes, from the protocol.
const (
	Region Scope = iota + 1
	Zone
	Subzone
	Node
	Cluster
	Network
)

// Service is a name and addresses that stand for many workloads.
type Service struct {
	// Key is ServiceKey(Namespace, Hostname).
	Key       string
	Name      string
	Namespace string
	Hostname  string
	// Addresses are unique; none for a headless service.
	Addresses []netip.Addr
	Ports     []Port
	// Identities are accepted besides those of the endpoints.
	Identities []spiffe.ID

	// Waypoint, if not nil, is where traffic to it must pass. With several,
	// it is the first.
	Waypoint *Gateway
	// WaypointFallback: as long as the waypoint has no endpoint, it is reached without.
	WaypointFallback bool
	// WaypointAnnounced is one whose word is taken, though clients need not come through it.
	WaypointAnnounced *Gateway

	Mode   Mode
	Scopes []Scope
	// AllowUnhealthy: endpoints are used whatever their health.
	AllowUnhealthy bool
	// Affinity, if not 0: a client's connections stay with one endpoint.
	Affinity time.Duration
	// NamespaceOnly: only clients of its own namespace may use it.
	NamespaceOnly bool

	digest digest
}

// Port of the service by its number.
func (s *Service) Port(number uint16) (Port, bool) {
	for _, p := range s.Ports {
		if p.Service == number {
			return p, true
		}
	}
	return Port{}, false
}
