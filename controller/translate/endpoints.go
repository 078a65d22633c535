package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/workload"
)

// serving is who serves which port of which service now.
type serving struct {
	ofPod    map[*pod]map[string]*workload.PortList // by service key
	external []*external                            // ordered by slice and address
}

// external is an endpoint that is not a pod.
type external struct {
	slice   *discoveryv1.EndpointSlice
	service *service
	addr    netip.Addr
	node    string
	zone    string
	ports   *workload.PortList
}

// candidate is an endpoint for one port of a service, as a slice has it.
type candidate struct {
	slice    *discoveryv1.EndpointSlice
	endpoint discoveryv1.Endpoint
	addr     netip.Addr
	port     *workload.Port
}

// rivals are the candidates among which kube-proxy chooses: those for one port
// of a service in one address family, and if the service is local, on one node.
type rivals struct {
	port   string
	family discoveryv1.AddressType
	node   string
}

// resolveEndpoints finds the endpoints that kube-proxy would use.
func resolveEndpoints(all []*discoveryv1.EndpointSlice, services *serviceIndex, pods *podIndex) *serving {
	result := &serving{ofPod: make(map[*pod]map[string]*workload.PortList)}
	externals := make(map[string]*external)
	byService := slicesByService(all, services)
	for _, s := range services.all {
		for _, c := range usable(s, byService[s]) {
			p, ok := pods.owner(c)
			switch {
			case p != nil:
				result.addPort(p, s, c.port)
			case ok:
				addExternalPort(externals, s, c)
			}
		}
	}
	for _, e := range externals {
		sortPorts(e.ports)
		result.external = append(result.external, e)
	}
	slices.SortFunc(result.external, func(a, b *external) int {
		return cmp.Or(strings.Compare(a.slice.Namespace, b.slice.Namespace),
			strings.Compare(a.slice.Name, b.slice.Name), a.addr.Compare(b.addr))
	})
	for _, byService := range result.ofPod {
		for _, ports := range byService {
			sortPorts(ports)
		}
	}
	return result
}

// slicesByService sorts out the slices of published services, ordered by name.
func slicesByService(all []*discoveryv1.EndpointSlice, services *serviceIndex) map[*service][]*discoveryv1.EndpointSlice {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b *discoveryv1.EndpointSlice) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	byService := make(map[*service][]*discoveryv1.EndpointSlice)
	for _, slice := range sorted {
		name := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
		if s, ok := services.byName[name]; ok && slice.AddressType != discoveryv1.AddressTypeFQDN {
			byService[s] = append(byService[s], slice)
		}
	}
	return byService
}

// usable returns the candidates for a service's ports that kube-proxy would
// send to: ready ones; where there is none, those that still serve while they
// terminate. A service that publishes addresses that are not ready has them all.
func usable(s *service, all []*discoveryv1.EndpointSlice) []candidate {
	var chosen []candidate
	for _, group := range groupCandidates(s, all) {
		var ready, draining []candidate
		for _, c := range group.members {
			switch conditions := c.endpoint.Conditions; {
			case s.Spec.PublishNotReadyAddresses, isTrue(conditions.Ready, true):
				ready = append(ready, c)
			case isTrue(conditions.Serving, true) && c.terminating():
				draining = append(draining, c)
			}
		}
		if len(ready) == 0 {
			ready = draining
		}
		chosen = append(chosen, ready...)
	}
	return chosen
}

// rivalGroup is the candidates that are rivals, each once.
type rivalGroup struct {
	members []candidate
	index   map[endpointKey]int // of members
}

// endpointKey tells endpoints apart: two pods may share an address.
type endpointKey struct {
	addr   netip.Addr
	target uint32
	ref    string // name of the object that the endpoint refers to
}

// groupCandidates sorts the endpoints of a service's TCP ports into rivals.
func groupCandidates(s *service, all []*discoveryv1.EndpointSlice) map[rivals]*rivalGroup {
	groups := make(map[rivals]*rivalGroup)
	for _, slice := range all {
		for _, port := range portsOf(s, slice) {
			for _, endpoint := range slice.Endpoints {
				if len(endpoint.Addresses) == 0 {
					continue
				}
				addr, ok := parseAddr(endpoint.Addresses[0]) // kube-proxy uses no other
				if !ok {
					continue
				}
				key := rivals{port: port.name, family: slice.AddressType}
				if s.local() && endpoint.NodeName != nil {
					key.node = *endpoint.NodeName
				}
				if groups[key] == nil {
					groups[key] = &rivalGroup{index: make(map[endpointKey]int)}
				}
				groups[key].add(candidate{slice: slice, endpoint: endpoint, addr: addr, port: port.Port})
			}
		}
	}
	return groups
}

// add a candidate. One that is in two slices for a moment counts once, as the
// endpoint that stays rather than the one that terminates.
func (g *rivalGroup) add(c candidate) {
	key := endpointKey{addr: c.addr, target: c.port.GetTargetPort()}
	if c.endpoint.TargetRef != nil {
		key.ref = c.endpoint.TargetRef.Name
	}
	i, exists := g.index[key]
	if !exists {
		g.index[key] = len(g.members)
		g.members = append(g.members, c)
		return
	}
	if g.members[i].terminating() && !c.terminating() {
		g.members[i] = c
	}
}

func (c candidate) terminating() bool { return isTrue(c.endpoint.Conditions.Terminating, false) }

// namedPort is a port of a service and what it is in one slice.
type namedPort struct {
	name string
	*workload.Port
}

// portsOf resolves a service's TCP ports in one slice: they have the same name
// there. A headless service may have no ports at all: its endpoints are listed
// nevertheless.
func portsOf(s *service, slice *discoveryv1.EndpointSlice) []namedPort {
	if len(s.Spec.Ports) == 0 && s.headless() {
		return []namedPort{{}}
	}
	var ports []namedPort
	for _, p := range s.Spec.Ports {
		if !isTCP(p) {
			continue
		}
		for _, target := range slice.Ports {
			isSame := target.Name != nil && *target.Name == p.Name &&
				(target.Protocol == nil || *target.Protocol == corev1.ProtocolTCP)
			if !isSame || target.Port == nil || *target.Port == 0 {
				continue
			}
			ports = append(ports, namedPort{name: p.Name, Port: &workload.Port{
				ServicePort: uint32(p.Port),
				TargetPort:  uint32(*target.Port),
				AppProtocol: appProtocol(p),
			}})
		}
	}
	return ports
}

// owner returns the pod that has a candidate's address. Without one, ok tells
// whether the candidate stands for itself. An endpoint that refers to a pod does
// not while that pod is unknown here or has ended, and it is never taken for
// another pod that has the address by now.
func (index *podIndex) owner(c candidate) (p *pod, ok bool) {
	holder := index.byAddr[c.addr]
	ref := c.endpoint.TargetRef
	if ref == nil || ref.Kind != "Pod" {
		return holder, true
	}
	name := types.NamespacedName{Namespace: cmp.Or(ref.Namespace, c.slice.Namespace), Name: ref.Name}
	referred := index.byName[name]
	if referred != nil && slices.Contains(referred.addresses, c.addr) {
		return referred, true
	}
	return nil, referred != nil && holder == nil
}

// addPort lists a service's port with the pod that serves it.
func (r *serving) addPort(p *pod, s *service, port *workload.Port) {
	byService := r.ofPod[p]
	if byService == nil {
		byService = make(map[string]*workload.PortList)
		r.ofPod[p] = byService
	}
	if byService[s.key] == nil {
		byService[s.key] = &workload.PortList{}
	}
	addOnce(byService[s.key], port)
}

func addExternalPort(externals map[string]*external, s *service, c candidate) {
	key := c.slice.Namespace + "/" + c.slice.Name + "/" + c.addr.String()
	e, ok := externals[key]
	if !ok {
		e = &external{slice: c.slice, service: s, addr: c.addr, ports: &workload.PortList{}}
		if c.endpoint.NodeName != nil {
			e.node = *c.endpoint.NodeName
		}
		if c.endpoint.Zone != nil {
			e.zone = *c.endpoint.Zone
		}
		externals[key] = e
	}
	addOnce(e.ports, c.port)
}

// addOnce adds a port unless it is there. One workload has one target for a
// service's port: of several, which only slices written by hand can have, the
// lowest is used.
func addOnce(list *workload.PortList, port *workload.Port) {
	if port == nil {
		return
	}
	for _, other := range list.Ports {
		if other.ServicePort == port.ServicePort {
			if port.TargetPort < other.TargetPort {
				other.TargetPort = port.TargetPort
			}
			return
		}
	}
	list.Ports = append(list.Ports, &workload.Port{
		ServicePort: port.ServicePort, TargetPort: port.TargetPort, AppProtocol: port.AppProtocol,
	})
}

func sortPorts(list *workload.PortList) {
	slices.SortFunc(list.Ports, func(a, b *workload.Port) int {
		return cmp.Compare(a.ServicePort, b.ServicePort)
	})
}

// isTrue reads a condition that has a default.
func isTrue(condition *bool, unset bool) bool {
	if condition == nil {
		return unset
	}
	return *condition
}
