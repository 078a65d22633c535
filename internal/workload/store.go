package workload

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
)

// Resource is one resource as it came from the controller.
type Resource struct {
	Name    string
	Version string
	// Aliases are further names: AddressKey of its addresses.
	Aliases []string
	Body    *anypb.Any
}

// Delta is a change of the resources of one type.
type Delta struct {
	Type string
	// Removed names that are not known are ignored.
	Removed []string
	Upserts []Resource
}

// Rejection is a resource that could not be read.
type Rejection struct {
	Type string
	Name string
	// Addresses that the resource is about, as far as they could be read.
	Addresses []netip.Addr
	// Err names the field.
	Err error
}

func (r Rejection) Error() string { return fmt.Sprintf("%s %q: %s", r.Type, r.Name, r.Err) }
func (r Rejection) Unwrap() error { return r.Err }

// Store applies deltas and publishes snapshots. Many may read while one applies.
type Store struct {
	current atomic.Pointer[Snapshot]
	// applying makes deltas one after the other.
	applying sync.Mutex
}

// NewStore returns a store that holds nothing.
func NewStore() *Store {
	s := &Store{}
	s.current.Store(emptySnapshot())
	return s
}

// Snapshot of now. To follow: take one, use it, wait for its Changed, take the next.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// SetPartial says, before anything is read, that the store will hold only what
// is asked for: see Snapshot.Partial.
func (s *Store) SetPartial() {
	s.publish(func(next *Snapshot) bool { next.partial = true; return true })
}

// Apply makes d part of the next snapshot, which is published when Apply
// returns. Resources that cannot be read are returned; what was known of them
// before stays as it was, but policies then deny.
func (s *Store) Apply(d Delta) (rejected []Rejection) {
	s.publish(func(next *Snapshot) (changed bool) {
		e := edit{next: next, rejected: maps.Clone(next.rejected)}
		switch d.Type {
		case AddressType:
			rejected = e.applyAddresses(d)
		case AuthorizationType:
			rejected = e.applyAuthorizations(d)
		case TrustBundleType:
			rejected = e.applyBundles(d)
		case RevocationListType:
			rejected = e.applyRevocations(d)
		case NamespaceType:
			next.namespaces, rejected = applyNamed(&e, d, next.namespaces, byName, func() *mesh.Namespace { return &mesh.Namespace{} }, parseNamespace)
		case EgressPolicyType:
			next.egress, rejected = applyNamed(&e, d, next.egress, byName, func() *mesh.EgressPolicy { return &mesh.EgressPolicy{} }, parseEgressPolicy)
		case RequestPolicyType:
			next.requests, rejected = applyNamed(&e, d, next.requests, byName, func() *mesh.RequestPolicy { return &mesh.RequestPolicy{} }, parseRequestPolicy)
		case RequestAuthenticationType:
			next.authentications, rejected = applyNamed(&e, d, next.authentications, byName, func() *mesh.RequestAuthentication { return &mesh.RequestAuthentication{} }, parseRequestAuthentication)
		case BindingType:
			next.bindings, rejected = applyNamed(&e, d, next.bindings, bindingKey, func() *mesh.Binding { return &mesh.Binding{} }, parseBinding)
		case ConfigType:
			rejected = e.applyConfig(d)
		default:
			rejected = []Rejection{{Type: d.Type, Err: errors.New("unknown resource type")}}
		}
		next.rejected = e.rejected
		return e.changed
	})
	return rejected
}

// publish makes the next snapshot from a copy of the current one, unless
// change says that nothing did.
func (s *Store) publish(change func(next *Snapshot) bool) {
	s.applying.Lock()
	defer s.applying.Unlock()
	old := s.current.Load()
	next := *old
	next.changed = make(chan struct{})
	if change(&next) {
		s.current.Store(&next)
		close(old.changed)
	}
}

// edit is a snapshot while a delta is being applied to it.
type edit struct {
	next     *Snapshot
	rejected map[string]Rejection
	changed  bool
}

// replaced accounts for contents that went from old to next; either may be
// zero. It tells whether they differ.
func (e *edit) replaced(old, next digest) bool {
	if old == next {
		return false
	}
	e.next.digest.sub(old)
	e.next.digest.add(next)
	e.changed = true
	return true
}

// rejectionKey tells resources apart that could not be read.
func rejectionKey(typeURL, name string) string { return typeURL + "/" + name }

// settle notes the outcome of reading a resource.
func (e *edit) settle(r Resource, typeURL string, addrs []netip.Addr, err error) []Rejection {
	key := rejectionKey(typeURL, r.Name)
	if err == nil {
		if _, ok := e.rejected[key]; ok {
			delete(e.rejected, key)
			e.changed = true
		}
		return nil
	}
	for _, alias := range r.Aliases {
		if addr, ok := ParseAddressKey(alias); ok && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	rejection := Rejection{Type: typeURL, Name: r.Name, Addresses: addrs, Err: err}
	if e.rejected == nil {
		e.rejected = map[string]Rejection{}
	}
	e.rejected[key] = rejection
	e.changed = true
	return []Rejection{rejection}
}

func (e *edit) applyBundles(d Delta) (rejected []Rejection) {
	next := maps.Clone(e.next.bundles)
	if next == nil {
		next = map[string]bundle{}
	}
	for _, name := range d.Removed {
		e.replaced(next[name].digest, digest{})
		e.settle(Resource{Name: name}, d.Type, nil, nil)
		delete(next, name)
	}
	for _, r := range d.Upserts {
		message, err := unpack(r.Body, &mesh.TrustBundle{})
		var b bundle
		if err == nil {
			b.roots, err = parseBundle(r.Name, message)
			b.retiring = message.GetRetiring()
		}
		if rejected = append(rejected, e.settle(r, d.Type, nil, err)...); err != nil {
			continue
		}
		b.digest = resourceDigest(r)
		e.replaced(next[r.Name].digest, b.digest)
		next[r.Name] = b
	}
	e.next.bundles = next
	return rejected
}

// applyConfig does not let the Config be removed: without pod ranges, pods that
// are not known yet would pass for addresses outside the mesh.
func (e *edit) applyConfig(d Delta) (rejected []Rejection) {
	for _, name := range d.Removed {
		if name == ConfigName && e.next.Configured() {
			rejected = append(rejected, e.settle(Resource{Name: name}, d.Type, nil, errors.New("removed, but a mesh needs it"))...)
		}
	}
	for _, r := range d.Upserts {
		message, err := unpack(r.Body, &mesh.Config{})
		var config meshConfig
		if err == nil {
			config, err = parseConfig(r.Name, message)
		}
		if rejected = append(rejected, e.settle(r, d.Type, nil, err)...); err != nil {
			continue
		}
		config.digest = resourceDigest(r)
		e.replaced(e.next.config.digest, config.digest)
		e.next.config = config
	}
	return rejected
}

// unpackAddress reads a workload or a service; exactly one is not nil without
// an error. With one, addrs is what the resource is about all the same.
func unpackAddress(r Resource, others endpointPorts) (w *Workload, s *Service, addrs []netip.Addr, err error) {
	message, err := unpack(r.Body, &api.Address{})
	if err != nil {
		return nil, nil, nil, err
	}
	switch t := message.GetType().(type) {
	case *api.Address_Workload:
		if w, err = parseWorkload(r.Name, t.Workload, others); err != nil {
			return nil, nil, readableAddrs(t.Workload.GetAddresses()), err
		}
		w.digest = resourceDigest(r)
		return w, nil, w.Addresses, nil
	case *api.Address_Service:
		if s, err = parseService(r.Name, t.Service); err != nil {
			var raw [][]byte
			for _, a := range t.Service.GetAddresses() {
				raw = append(raw, a.GetAddress())
			}
			return nil, nil, readableAddrs(raw), err
		}
		s.digest = resourceDigest(r)
		return nil, s, s.Addresses, nil
	default:
		return nil, nil, nil, errors.New("type: neither workload nor service")
	}
}

// readableAddrs are those of a rejected resource that can be read.
func readableAddrs(raw [][]byte) (out []netip.Addr) {
	for _, b := range raw {
		if addr, err := parseAddr(b); err == nil {
			out = append(out, addr)
		}
	}
	return slices.Compact(slices.SortedFunc(slices.Values(out), netip.Addr.Compare))
}
