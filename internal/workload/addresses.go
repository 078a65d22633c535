package workload

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// addressEdit is the tables of the Address type while a delta is applied. They
// are made only for deltas of that type: their shards are worth saving.
type addressEdit struct {
	*edit
	workloads       *tableEdit[string, *Workload]
	services        *tableEdit[string, *Service]
	workloadsByAddr *indexEdit[netip.Addr, *Workload]
	servicesByAddr  *indexEdit[netip.Addr, *Service]
	endpoints       *indexEdit[string, *Workload]
	tunnelled       *tableEdit[string, *Workload]
	// ports are the Services of the last endpoint that was read, by service.
	ports map[string]map[string][]Port
}

func (e *edit) applyAddresses(d Delta) (rejected []Rejection) {
	a := addressEdit{
		edit:            e,
		workloads:       e.next.workloads.edit(),
		services:        e.next.services.edit(),
		workloadsByAddr: e.next.workloadsByAddr.edit(),
		servicesByAddr:  e.next.servicesByAddr.edit(),
		endpoints:       e.next.endpoints.edit(),
		tunnelled:       e.next.tunnelled.edit(),
		ports:           map[string]map[string][]Port{},
	}
	for _, name := range d.Removed {
		a.settle(Resource{Name: name}, d.Type, nil, nil)
		a.replaceWorkload(name, nil)
		a.replaceService(name, nil)
	}
	for _, r := range d.Upserts {
		w, s, addrs, err := unpackAddress(r, a.endpointPorts)
		if rejected = append(rejected, a.settle(r, d.Type, addrs, err)...); err != nil {
			continue
		}
		if w != nil && len(w.Services) > 0 {
			a.ports[slices.Min(slices.Collect(maps.Keys(w.Services)))] = w.Services
		}
		// A name that was the other kind before is no longer.
		a.replaceWorkload(r.Name, w)
		a.replaceService(r.Name, s)
	}
	if e.changed {
		a.finish()
	}
	return rejected
}

// endpointPorts finds what the endpoint of a service said that was read last.
func (a *addressEdit) endpointPorts(serviceKey string) map[string][]Port {
	if ports, ok := a.ports[serviceKey]; ok {
		return ports
	}
	if known := a.next.endpoints.get(serviceKey); len(known) > 0 {
		return known[0].Services
	}
	return nil
}

// replaceWorkload makes w, or nothing, what name stands for among workloads.
func (a *addressEdit) replaceWorkload(name string, w *Workload) {
	var was, is digest
	old, known := a.workloads.get(name)
	if known {
		was = old.digest
	}
	if w != nil {
		is = w.digest
	}
	if !a.replaced(was, is) {
		return
	}
	if known {
		a.unlinkWorkload(old)
		a.workloads.remove(name)
	}
	if w != nil {
		a.workloads.set(name, w)
		a.linkWorkload(w)
	}
	a.tunnel(name, old, w)
}

// tunnel keeps those that are reached by tunnels alone, or some ports of which are;
// either may be nil.
func (a *addressEdit) tunnel(name string, old, w *Workload) {
	var was, is struct {
		all   bool
		ports []uint16
	}
	if old != nil {
		was.all, was.ports = old.TunnelsOnly()
	}
	if w != nil {
		is.all, is.ports = w.TunnelsOnly()
	}
	some, before := is.all || len(is.ports) > 0, was.all || len(was.ports) > 0
	if some {
		a.tunnelled.set(name, w)
	} else if before {
		a.tunnelled.remove(name)
	}
	if some != before || is.all != was.all || !slices.Equal(is.ports, was.ports) || some && !slices.Equal(old.Addresses, w.Addresses) {
		a.next.tunnelledChanges++
	}
}

func (a *addressEdit) linkWorkload(w *Workload) {
	if identifies(w) {
		for _, addr := range w.Addresses {
			a.workloadsByAddr.set(addr, w)
		}
	}
	for service := range w.Services {
		a.endpoints.set(service, w)
	}
}

func (a *addressEdit) unlinkWorkload(w *Workload) {
	if identifies(w) {
		for _, addr := range w.Addresses {
			a.workloadsByAddr.remove(addr, w.UID)
		}
	}
	for service := range w.Services {
		a.endpoints.remove(service, w.UID)
	}
}

// identifies tells whether w's addresses stand for w: not those of another
// network, nor those that it shares with its node.
func identifies(w *Workload) bool { return w.Network == "" && !w.HostNetwork }

// replaceService makes s, or nothing, what name stands for among services.
func (a *addressEdit) replaceService(name string, s *Service) {
	var was, is digest
	old, known := a.services.get(name)
	if known {
		was = old.digest
	}
	if s != nil {
		is = s.digest
	}
	if !a.replaced(was, is) {
		return
	}
	if known {
		for _, addr := range old.Addresses {
			a.servicesByAddr.remove(addr, name)
		}
		a.services.remove(name)
	}
	if s != nil {
		a.services.set(name, s)
		for _, addr := range s.Addresses {
			a.servicesByAddr.set(addr, s)
		}
	}
}

func (a *addressEdit) finish() {
	a.next.workloads = a.workloads.next
	a.next.services = a.services.next
	a.next.workloadsByAddr = a.workloadsByAddr.finish()
	a.next.servicesByAddr = a.servicesByAddr.finish()
	a.next.endpoints = a.endpoints.finish()
	a.next.tunnelled = a.tunnelled.next
	for service := range a.endpoints.changes {
		a.weigh(service)
	}
}

// weigh finds the heaviest endpoint of a service. Most have weight 1, which is
// not worth an entry.
func (a *addressEdit) weigh(service string) {
	heaviest := uint32(1)
	if endpoints := a.next.endpoints.get(service); len(endpoints) > 0 {
		heaviest = slices.MaxFunc(endpoints, func(x, y *Workload) int { return cmp.Compare(x.Weight, y.Weight) }).Weight
	}
	if heaviest == a.next.HeaviestEndpoint(service) {
		return
	}
	edit := a.next.heaviest.edit()
	if heaviest == 1 {
		edit.remove(service)
	} else {
		edit.set(service, heaviest)
	}
	a.next.heaviest = edit.next
}
