package bpf

import (
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"
)

// MaxTried is how much of what policies on trial would drop is told apart between two calls of TakeTried.
const MaxTried = int(connectNumberMAX_TRIED)

// Tried is what policies on trial would have dropped: packets of one protocol to one destination.
type Tried struct {
	// Source is that of the first packet. Of what cannot be read it is the zero Addr, and so is Destination's.
	Source      netip.Addr
	Destination netip.AddrPort // with a port of UDP and TCP, else zero
	Protocol    uint8          // IP's number
	Packets     uint64
}

// AllTried is what policies on trial would have dropped of one pod.
type AllTried struct {
	Apart []Tried
	// Rest are packets that there was no room for to tell them apart.
	Rest uint64
}

// TakeTried returns what policies on trial would have dropped, of the pods that are wanted by the cookies of their namespaces, since it
// was called last. A packet that leaves at that very moment may be missed.
func (n *Node) TakeTried(wanted func(cookie uint64) bool) (map[uint64]AllTried, error) {
	all := map[uint64]AllTried{}
	keys, err := keysOf(n.maps[guardMapMeshTried], func(k guardTriedKey) bool { return wanted(k.Cookie) })
	errs := []error{err}
	for _, key := range keys {
		var value guardTried
		if err := n.maps[guardMapMeshTried].LookupAndDelete(key, &value); err != nil {
			errs = append(errs, ignoreMissing(err))
			continue
		}
		of := all[key.Cookie]
		of.Apart = append(of.Apart, Tried{
			Source: connectAddr(value.Source).netip(), Destination: netip.AddrPortFrom(connectAddr(key.Destination).netip(), key.Port),
			Protocol: key.Protocol, Packets: value.Packets,
		})
		all[key.Cookie] = of
	}
	cookies, err := keysOf(n.maps[guardMapMeshTriedRest], wanted)
	errs = append(errs, err)
	for _, cookie := range cookies {
		of := all[cookie]
		errs = append(errs, ignoreMissing(n.maps[guardMapMeshTriedRest].LookupAndDelete(cookie, &of.Rest)))
		all[cookie] = of
	}
	return all, errors.Join(errs...)
}

// keysOf returns the keys of a map that are wanted: before any of them is deleted, since the next is found by the one before.
func keysOf[K any](m *ebpf.Map, wanted func(K) bool) (keys []K, err error) {
	var key K
	value := make([]byte, m.ValueSize())
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		if wanted(key) {
			keys = append(keys, key)
		}
	}
	return keys, entries.Err()
}
