package bpf

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"
)

// A Tunnelled says by whom something is reached by tunnels alone: ztunnel sends it nothing else of TCP for such pods.
type Tunnelled uint32

const (
	// TunnelledByAll: by every pod.
	TunnelledByAll = Tunnelled(guardTunnelledTUNNELLED_BY_ALL)
	// TunnelledByStrict: by strict ones.
	TunnelledByStrict = Tunnelled(guardTunnelledTUNNELLED_BY_STRICT)
)

// MaxTunnelled is how many there can be.
const MaxTunnelled = int(connectNumberMAX_TUNNELLED)

// A TunnelledTo is what is reached so: all ports of a range of addresses, or one port of an address.
type TunnelledTo struct {
	Range netip.Prefix
	// Port is 0 for all of them; otherwise the Range is one address.
	Port uint16
}

// TunnelledAddr is all ports of an address for port 0, and else that one.
func TunnelledAddr(addr netip.Addr, port uint16) TunnelledTo {
	return TunnelledTo{netip.PrefixFrom(addr, addr.BitLen()), port}
}

func (t TunnelledTo) String() string {
	if t.Port == 0 {
		return t.Range.String()
	}
	return t.Range.String() + " port " + strconv.Itoa(int(t.Port))
}

// SetTunnelled has something be reached by tunnels alone. Of several ranges that an address is in the longest counts, and a port's
// own before them.
func (n *Node) SetTunnelled(to TunnelledTo, by Tunnelled) error {
	return n.maps[guardMapMeshTunnelled].Put(to.key(), by)
}

// RemoveTunnelled ends what SetTunnelled began. To remove what is not there is no error.
func (n *Node) RemoveTunnelled(to TunnelledTo) error {
	return ignoreMissing(n.maps[guardMapMeshTunnelled].Delete(to.key()))
}

// Tunnelled returns what SetTunnelled said, in whatever process.
func (n *Node) Tunnelled() (map[TunnelledTo]Tunnelled, error) {
	all := map[TunnelledTo]Tunnelled{}
	var key guardTunnelledKey
	var by Tunnelled
	entries := n.maps[guardMapMeshTunnelled].Iterate()
	for entries.Next(&key, &by) {
		all[key.to()] = by
	}
	return all, entries.Err()
}

// portBits follow those of the address.
const portBits = 16

func (t TunnelledTo) key() guardTunnelledKey {
	key := guardTunnelledKey{Bits: uint32(t.Range.Bits()), Destination: addrOf(t.Range.Masked().Addr())}
	if t.Range.Addr().Is4() {
		key.Bits += mappedBits
	}
	if t.Port != 0 {
		key.Bits += portBits
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&key.Port))[:], t.Port)
	}
	return key
}

func (k guardTunnelledKey) to() TunnelledTo {
	address, bits := netip.AddrFrom16(*(*[16]byte)(unsafe.Pointer(&k.Destination.Word))), int(k.Bits)
	var port uint16
	if bits > address.BitLen() {
		port = binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&k.Port))[:])
		bits = address.BitLen()
	}
	if address.Is4In6() && bits >= mappedBits {
		address, bits = address.Unmap(), bits-mappedBits
	}
	return TunnelledTo{netip.PrefixFrom(address, bits), port}
}
