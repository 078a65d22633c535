package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/workload"
)

const (
	// labelProxyName marks a Service that another proxy than kube-proxy serves:
	// its addresses are not ours to resolve.
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	// affinityExtension carries ClientIP affinity, for which the protocol has no field.
	affinityExtension = "ambit.mesh/session-affinity"
)

// service is a published Service.
type service struct {
	*corev1.Service
	key     string // namespace/hostname
	message *workload.Service
	// uncaptured is how many of its endpoints are no captured pods.
	uncaptured int
}

// serviceIndex finds published services.
type serviceIndex struct {
	all    []*service // ordered by key
	byName map[types.NamespacedName]*service
	// unpublished is why Services are not in byName that there are.
	unpublished map[types.NamespacedName]string
}

// missing says why a Service is not published.
func (i *serviceIndex) missing(name types.NamespacedName) string {
	if why := i.unpublished[name]; why != "" {
		return fmt.Sprintf("Service %s %s", name, why)
	}
	return fmt.Sprintf("there is no Service %s", name)
}

// byKey finds a published Service; nil if there is none.
func (i *serviceIndex) byKey(key string) *service {
	at, found := slices.BinarySearchFunc(i.all, key, func(s *service, key string) int { return strings.Compare(s.key, key) })
	if !found {
		return nil
	}
	return i.all[at]
}

// indexServices picks and describes the Services that are published: all but
// aliases to other names, and those that something else than kube-proxy serves.
func indexServices(all []*corev1.Service, pods *podIndex, config Config) *serviceIndex {
	index := &serviceIndex{byName: make(map[types.NamespacedName]*service), unpublished: make(map[types.NamespacedName]string)}
	for _, s := range all {
		name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
		if s.Spec.Type == corev1.ServiceTypeExternalName {
			index.unpublished[name] = "is of type ExternalName: it has no endpoints"
			continue
		}
		if proxy, ok := s.Labels[labelProxyName]; ok {
			index.unpublished[name] = fmt.Sprintf("is served by %q, as its label %s says", proxy, labelProxyName)
			continue
		}
		hostname := s.Name + "." + s.Namespace + ".svc." + config.ClusterDomain
		published := &service{Service: s, key: s.Namespace + "/" + hostname}
		index.all = append(index.all, published)
		index.byName[name] = published
	}
	slices.SortFunc(index.all, func(a, b *service) int { return strings.Compare(a.key, b.key) })

	virtual := assignAddresses(index.all, pods)
	for _, s := range index.all {
		s.message = &workload.Service{
			Name:          s.Name,
			Namespace:     s.Namespace,
			Hostname:      strings.TrimPrefix(s.key, s.Namespace+"/"),
			Addresses:     virtual[s],
			Ports:         servicePorts(s.Service),
			LoadBalancing: loadBalancing(s.Service),
			IpFamilies:    ipFamilies(s.Service),
			Extensions:    extensions(s.Service),
			Canonical:     true,
		}
	}
	return index
}

// claim is a Service's wish to have a virtual address.
type claim struct {
	addr    netip.Addr
	service *service
	// rank is 0 for a cluster IP, which Kubernetes assigned to this Service
	// alone; 1 for what a load balancer said; 2 for what the author wrote.
	rank int
}

// assignAddresses gives every virtual address to one Service. What its author
// may write as they please takes an address neither from another Service that
// was assigned it nor from a pod.
func assignAddresses(services []*service, pods *podIndex) map[*service][]*workload.NetworkAddress {
	var claims []claim
	for _, s := range services {
		claims = append(claims, claimsOf(s)...)
	}
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(
			cmp.Compare(a.rank, b.rank),
			a.service.CreationTimestamp.Compare(b.service.CreationTimestamp.Time),
			strings.Compare(a.service.key, b.service.key),
		)
	})
	taken := make(map[netip.Addr]bool, len(claims))
	assigned := make(map[*service][]*workload.NetworkAddress)
	for _, c := range claims {
		if _, isPod := pods.byAddr[c.addr]; taken[c.addr] || isPod && c.rank > 0 {
			continue
		}
		taken[c.addr] = true
		assigned[c.service] = append(assigned[c.service], &workload.NetworkAddress{Address: c.addr.AsSlice()})
	}
	return assigned
}

func claimsOf(s *service) []claim {
	var claims []claim
	add := func(rank int, addresses ...string) {
		for _, a := range addresses {
			if addr, ok := parseAddr(a); ok { // "None" and "" are not addresses
				claims = append(claims, claim{addr: addr, service: s, rank: rank})
			}
		}
	}
	if len(s.Spec.ClusterIPs) > 0 {
		add(0, s.Spec.ClusterIPs...)
	} else {
		add(0, s.Spec.ClusterIP)
	}
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
			add(1, ingress.IP)
		}
	}
	add(2, s.Spec.ExternalIPs...)
	return claims
}

func (s *service) aliases() []string {
	raw := make([][]byte, len(s.message.Addresses))
	for i, address := range s.message.Addresses {
		raw[i] = address.Address
	}
	return addressAliases(raw)
}

// headless Services have no virtual address by choice.
func (s *service) headless() bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

// local Services are served on the client's node only.
func (s *service) local() bool {
	policy := s.Spec.InternalTrafficPolicy
	return policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal
}

// servicePorts are the TCP ports. A named target differs by endpoint: it is in
// the workloads' ports only.
func servicePorts(s *corev1.Service) []*workload.Port {
	var ports []*workload.Port
	for _, p := range s.Spec.Ports {
		if !isTCP(p) {
			continue
		}
		port := &workload.Port{ServicePort: uint32(p.Port), AppProtocol: appProtocol(p)}
		if p.TargetPort.StrVal == "" {
			port.TargetPort = uint32(cmp.Or(p.TargetPort.IntVal, p.Port))
		}
		ports = append(ports, port)
	}
	return ports
}

func isTCP(p corev1.ServicePort) bool {
	return p.Protocol == corev1.ProtocolTCP || p.Protocol == ""
}

// appProtocol of a port: as declared, else as its name begins (`http-web`).
func appProtocol(p corev1.ServicePort) workload.AppProtocol {
	declared, _, _ := strings.Cut(p.Name, "-")
	if p.AppProtocol != nil {
		declared = *p.AppProtocol
	}
	switch strings.ToLower(declared) {
	case "http", "kubernetes.io/ws":
		return workload.AppProtocol_HTTP11
	case "http2", "kubernetes.io/h2c":
		return workload.AppProtocol_HTTP2
	case "grpc":
		return workload.AppProtocol_GRPC
	case "https", "tls", "kubernetes.io/wss":
		return workload.AppProtocol_TLS
	case "tcp":
		return workload.AppProtocol_TCP
	}
	return workload.AppProtocol_UNKNOWN
}

// loadBalancing says which endpoints a client uses, nil for any healthy one.
func loadBalancing(s *corev1.Service) *workload.LoadBalancing {
	lb := &workload.LoadBalancing{}
	nearby := []workload.LoadBalancing_Scope{workload.LoadBalancing_NETWORK, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE}
	var distribution string
	if s.Spec.TrafficDistribution != nil {
		distribution = *s.Spec.TrafficDistribution
	}
	switch {
	case (&service{Service: s}).local():
		lb.Mode = workload.LoadBalancing_STRICT
		lb.RoutingPreference = []workload.LoadBalancing_Scope{workload.LoadBalancing_NODE}
	case distribution == corev1.ServiceTrafficDistributionPreferClose,
		distribution == corev1.ServiceTrafficDistributionPreferSameZone:
		lb.Mode = workload.LoadBalancing_FAILOVER
		lb.RoutingPreference = nearby
	case distribution == corev1.ServiceTrafficDistributionPreferSameNode:
		lb.Mode = workload.LoadBalancing_FAILOVER
		lb.RoutingPreference = append(nearby, workload.LoadBalancing_NODE)
	case !s.Spec.PublishNotReadyAddresses:
		return nil
	}
	if s.Spec.PublishNotReadyAddresses {
		lb.HealthPolicy = workload.LoadBalancing_ALLOW_ALL
	}
	return lb
}

func ipFamilies(s *corev1.Service) workload.IPFamilies {
	switch {
	case len(s.Spec.IPFamilies) > 1:
		return workload.IPFamilies_DUAL
	case slices.Contains(s.Spec.IPFamilies, corev1.IPv4Protocol):
		return workload.IPFamilies_IPV4_ONLY
	case slices.Contains(s.Spec.IPFamilies, corev1.IPv6Protocol):
		return workload.IPFamilies_IPV6_ONLY
	}
	return workload.IPFamilies_AUTOMATIC
}

// extensions carry what the protocol has no field for.
func extensions(s *corev1.Service) []*workload.Extension {
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return nil
	}
	timeout := corev1.DefaultClientIPServiceAffinitySeconds
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		timeout = *c.ClientIP.TimeoutSeconds
	}
	return []*workload.Extension{extension(affinityExtension, &mesh.SessionAffinity{ClientIpTimeoutSeconds: uint32(timeout)})}
}

// extension packs a message. Ours hold numbers, and names that Kubernetes
// checked: they always serialize.
func extension(name string, message proto.Message) *workload.Extension {
	config := &anypb.Any{}
	if err := anypb.MarshalFrom(config, message, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err)
	}
	return &workload.Extension{Name: name, Config: config}
}
