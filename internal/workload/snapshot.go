package workload

import (
	"crypto/x509"
	"encoding/hex"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/revocation"
)

// Snapshot is the mesh at one moment. It never changes; lists that it returns
// belong to it and must not be changed either.
type Snapshot struct {
	workloads       *table[string, *Workload]
	workloadsByAddr index[netip.Addr, *Workload]
	services        *table[string, *Service]
	servicesByAddr  index[netip.Addr, *Service]
	endpoints       index[string, *Workload]
	// heaviest has the largest weight among a service's endpoints, where that is not 1.
	heaviest *table[string, uint32]
	// tunnelled are those that are reached by tunnels alone, or some ports of which are, and how often their addresses and these have
	// changed.
	tunnelled        *table[string, *Workload]
	tunnelledChanges uint64

	authorizations *authorizations
	bundles        map[string]bundle
	revocations    map[string]named[*revocation.List]
	namespaces     map[string]named[Namespace]
	egress         map[string]named[*EgressPolicy]
	requests       map[string]named[*mesh.RequestPolicy]
	bindings       map[string]named[*Binding]

	authentications map[string]named[*mesh.RequestAuthentication]

	config meshConfig

	rejected map[string]Rejection
	partial  bool
	digest   digest
	// changed is closed when the next snapshot has been published.
	changed chan struct{}
}

type bundle struct {
	roots []*x509.Certificate
	// retiring are fingerprints of some of them.
	retiring []string
	digest   digest
}

type meshConfig struct {
	trustDomain              string
	clusterID                string
	podRanges, serviceRanges []netip.Prefix
	digest                   digest
}

func emptySnapshot() *Snapshot {
	return &Snapshot{
		workloads:       newTable[string, *Workload](),
		workloadsByAddr: newIndex[netip.Addr, *Workload](),
		services:        newTable[string, *Service](),
		servicesByAddr:  newIndex[netip.Addr, *Service](),
		endpoints:       newIndex[string, *Workload](),
		heaviest:        newTable[string, uint32](),
		tunnelled:       newTable[string, *Workload](),
		authorizations:  arrange(map[string]authorization{}),
		config:          meshConfig{trustDomain: DefaultTrustDomain},
		changed:         make(chan struct{}),
	}
}

// Changed is closed once a newer snapshot has been published.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// WorkloadByUID finds a workload by its primary key.
func (s *Snapshot) WorkloadByUID(uid string) (*Workload, bool) { return s.workloads.get(uid) }

// WorkloadByAddr finds the workload that an address identifies: one of the
// local network that does not share its node's address. While two claim the
// address, the one that needs a tunnel wins: taking the other one's word would
// send to it in plaintext.
func (s *Snapshot) WorkloadByAddr(addr netip.Addr) (*Workload, bool) {
	claims := s.workloadsByAddr.get(normal(addr))
	if len(claims) == 0 {
		return nil, false
	}
	for _, w := range claims {
		if w.Protocol == HBONE {
			return w, true
		}
	}
	return claims[0], true
}

// Service finds a service by its primary key, namespace/hostname.
func (s *Snapshot) Service(key string) (*Service, bool) { return s.services.get(key) }

// ServiceByAddr finds the service that has an address. If several share it,
// it is the one with the lowest key: use ServicesByAddr where the port matters.
func (s *Snapshot) ServiceByAddr(addr netip.Addr) (*Service, bool) {
	claims := s.servicesByAddr.get(normal(addr))
	if len(claims) == 0 {
		return nil, false
	}
	return claims[0], true
}

// ServicesByAddr lists the services that have an address, sorted by key:
// external addresses may be shared.
func (s *Snapshot) ServicesByAddr(addr netip.Addr) []*Service {
	return s.servicesByAddr.get(normal(addr))
}

// Endpoints lists the workloads that a service uses, sorted by uid.
func (s *Snapshot) Endpoints(serviceKey string) []*Workload { return s.endpoints.get(serviceKey) }

// HeaviestEndpoint is the largest weight among a service's endpoints; 1 if it has none.
func (s *Snapshot) HeaviestEndpoint(serviceKey string) uint32 {
	if weight, ok := s.heaviest.get(serviceKey); ok {
		return weight
	}
	return 1
}

// Workloads yields all of them, in no order.
func (s *Snapshot) Workloads() iter.Seq2[string, *Workload] { return s.workloads.all() }

// Tunnelled yields those that are reached by tunnels alone, or some ports of which
// are, captured or not, in no order: see Workload.TunnelsOnly. Their addresses and
// ports are the same in two snapshots of a store that say the same number.
func (s *Snapshot) Tunnelled() (number uint64, all iter.Seq2[string, *Workload]) {
	return s.tunnelledChanges, s.tunnelled.all()
}

// Services yields all of them, in no order.
func (s *Snapshot) Services() iter.Seq2[string, *Service] { return s.services.all() }

// Configured tells whether the mesh's Config is known. Without it nobody can
// say which addresses are outside the mesh.
func (s *Snapshot) Configured() bool { return s.config.digest != (digest{}) }

// TrustDomain of the mesh; the default one while none is known.
func (s *Snapshot) TrustDomain() string { return s.config.trustDomain }

// ClusterID of the mesh; empty while none is known.
func (s *Snapshot) ClusterID() string { return s.config.clusterID }

// TrustBundle is the roots of the mesh's own trust domain; none while unknown.
func (s *Snapshot) TrustBundle() []*x509.Certificate { return s.bundles[s.config.trustDomain].roots }

// RetiringRoots are the fingerprints of those roots of the bundle that sign no
// more: SHA-256, in hex.
func (s *Snapshot) RetiringRoots() []string { return s.bundles[s.config.trustDomain].retiring }

// Revoked is what the mesh's own trust domain has revoked; nil, which revokes
// nothing, while none is known.
func (s *Snapshot) Revoked() *revocation.List { return s.revocations[s.config.trustDomain].value }

// InPodRange tells whether pods get addresses like this one.
func (s *Snapshot) InPodRange(addr netip.Addr) bool {
	addr = normal(addr)
	return slices.ContainsFunc(s.config.podRanges, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// InServiceRange tells whether Services get addresses like this one.
func (s *Snapshot) InServiceRange(addr netip.Addr) bool {
	addr = normal(addr)
	return slices.ContainsFunc(s.config.serviceRanges, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// ServiceRanges lists what InServiceRange looks at.
func (s *Snapshot) ServiceRanges() []netip.Prefix { return s.config.serviceRanges }

// PodRanges lists what InPodRange looks at.
func (s *Snapshot) PodRanges() []netip.Prefix { return s.config.podRanges }

// Partial tells that the snapshot holds only what was asked for: any address
// that it does not know may still be one of the mesh.
func (s *Snapshot) Partial() bool { return s.partial }

// RejectedByAddr finds a resource of this address that could not be read. What
// the address stands for is then unknown, and must not be guessed.
func (s *Snapshot) RejectedByAddr(addr netip.Addr) (Rejection, bool) {
	if len(s.rejected) == 0 {
		return Rejection{}, false
	}
	addr = normal(addr)
	for _, r := range s.rejected {
		if slices.Contains(r.Addresses, addr) {
			return r, true
		}
	}
	return Rejection{}, false
}

// Binding of a Service, by its key, or of a workload, by its uid; only waypoints
// have any. One that could not be read is none, whatever it was before: policies may
// have been added.
func (s *Snapshot) Binding(key string) (*Binding, bool) {
	for _, r := range s.rejected {
		if r.Type == BindingType && bindingKey(r.Name) == key {
			return nil, false
		}
	}
	found, ok := s.bindings[key]
	return found.value, ok
}

// RequestPolicy finds a policy for requests by namespace/name; only waypoints have
// any. It must not be changed. One that could not be read is none, whatever it was
// before.
func (s *Snapshot) RequestPolicy(name string) (*mesh.RequestPolicy, bool) {
	found, ok := s.requests[name]
	if !ok || s.rejects(RequestPolicyType, name) {
		return nil, false
	}
	return found.value, true
}

// RequestAuthentication finds what says which tokens requests may bear, by
// namespace/name; only waypoints have any. It must not be changed. One that could not
// be read is none, whatever it was before.
func (s *Snapshot) RequestAuthentication(name string) (*mesh.RequestAuthentication, bool) {
	found, ok := s.authentications[name]
	if !ok || s.rejects(RequestAuthenticationType, name) {
		return nil, false
	}
	return found.value, true
}

// RequestAuthentications yields all of them, in no order.
func (s *Snapshot) RequestAuthentications() iter.Seq[*mesh.RequestAuthentication] {
	return func(yield func(*mesh.RequestAuthentication) bool) {
		for _, found := range s.authentications {
			if !yield(found.value) {
				return
			}
		}
	}
}

// Rejected lists the resources that could not be read, sorted by type and name.
func (s *Snapshot) Rejected() []Rejection {
	out := make([]Rejection, 0, len(s.rejected))
	for _, key := range slices.Sorted(maps.Keys(s.rejected)) {
		out = append(out, s.rejected[key])
	}
	return out
}

// Count of the resources of a type.
func (s *Snapshot) Count(typeURL string) int {
	switch typeURL {
	case AddressType:
		return s.workloads.len + s.services.len
	case AuthorizationType:
		return len(s.authorizations.byName)
	case TrustBundleType:
		return len(s.bundles)
	case RevocationListType:
		return len(s.revocations)
	case NamespaceType:
		return len(s.namespaces)
	case EgressPolicyType:
		return len(s.egress)
	case RequestPolicyType:
		return len(s.requests)
	case RequestAuthenticationType:
		return len(s.authentications)
	case BindingType:
		return len(s.bindings)
	case ConfigType:
		if s.Configured() {
			return 1
		}
	}
	return 0
}

// Version is a hash of the contents: the same on every node that knows the same.
func (s *Snapshot) Version() string { return hex.EncodeToString(s.digest.bytes()) }
