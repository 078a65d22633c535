package bpf

import (
	"net/netip"
	"unsafe"
)

// A Tunnelled says by whom addresses are reached by tunnels alone: ztunnel sends them nothing else of TCP for such pods.
type Tunnelled uint32

const (
	// TunnelledByAll: by every pod.
	TunnelledByAll = Tunnelled(guardTunnelledTUNNELLED_BY_ALL)
	// TunnelledByStrict: by strict ones.
	TunnelledByStrict = Tunnelled(guardTunnelledTUNNELLED_BY_STRICT)
)

// MaxTunnelled is how many ranges there can be.
const MaxTunnelled = int(connectNumberMAX_TUNNELLED)

// SetTunnelled has a range be reached by tunnels alone. Of several ranges that an address is in the longest counts.
func (n *Node) SetTunnelled(to netip.Prefix, by Tunnelled) error {
	return n.maps[guardMapMeshTunnelled].Put(tunnelledKey(to), by)
}

// RemoveTunnelled ends what SetTunnelled began. To remove what is not there is no error.
func (n *Node) RemoveTunnelled(to netip.Prefix) error {
	return ignoreMissing(n.maps[guardMapMeshTunnelled].Delete(tunnelledKey(to)))
}

// Tunnelled returns what SetTunnelled said, in whatever process.
func (n *Node) Tunnelled() (map[netip.Prefix]Tunnelled, error) {
	all := map[netip.Prefix]Tunnelled{}
	var key guardTunnelledKey
	var by Tunnelled
	entries := n.maps[guardMapMeshTunnelled].Iterate()
	for entries.Next(&key, &by) {
		all[key.prefix()] = by
	}
	return all, entries.Err()
}

func tunnelledKey(p netip.Prefix) guardTunnelledKey {
	key := guardTunnelledKey{Bits: uint32(p.Bits()), Destination: addrOf(p.Masked().Addr())}
	if p.Addr().Is4() {
		key.Bits += mappedBits
	}
	return key
}

func (k guardTunnelledKey) prefix() netip.Prefix {
	address, bits := netip.AddrFrom16(*(*[16]byte)(unsafe.Pointer(&k.Destination.Word))), int(k.Bits)
	if address.Is4In6() && bits >= mappedBits {
		address, bits = address.Unmap(), bits-mappedBits
	}
	return netip.PrefixFrom(address, bits)
}
