package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"
)

// MaxUDPRanges of ports are told of one destination.
const MaxUDPRanges = int(connectNumberMAX_UDP_RANGES)

// An Egress says of a pod whether its way out of the mesh is denied: then nothing leaves it but TCP that ztunnel carries, and
// what is allowed.
type Egress struct {
	Denied bool
	// Tried has what policies on trial would drop told of, by TakeTried.
	Tried bool
	// DNS says that what the pod asks DNS servers is turned round at its devices, by the program of LoadDNS.
	DNS bool
}

// A Table is the policies of a pod that allow something.
type Table int

const (
	// InForce are those that are in force.
	InForce Table = iota
	// OnTrial are those that are on trial, as if they were in force, and those that are.
	OnTrial
)

func (t Table) ranges() string {
	if t == OnTrial {
		return guardMapMeshTryRanges
	}
	return guardMapMeshRanges
}

func (t Table) names() string {
	if t == OnTrial {
		return guardMapMeshTryNames
	}
	return guardMapMeshNames
}

// An Allowance is what may leave for some addresses, other than by TCP.
type Allowance struct {
	// Every lets packets of every protocol leave; else datagrams of UDP to these ports do.
	Every bool
	UDP   []PortRange
}

// PortRange includes both ends.
type PortRange struct{ First, Last uint16 }

func (a Allowance) value() (v guardAllowance, err error) {
	if len(a.UDP) > MaxUDPRanges {
		return v, fmt.Errorf("%d ranges of UDP ports for one destination, %d at most", len(a.UDP), MaxUDPRanges)
	}
	if a.Every {
		v.Every = 1
	}
	v.Count = uint32(len(a.UDP))
	for i, r := range a.UDP {
		v.Udp[i].First, v.Udp[i].Last = r.First, r.Last
	}
	return v, nil
}

// SetEgress says whether the way out is denied of the pod whose namespace has this cookie, wherever its guard is attached.
func (n *Node) SetEgress(cookie uint64, e Egress) error {
	var flags uint32
	if e.Denied {
		flags |= uint32(guardEgressFlagEGRESS_DENIED)
	}
	if e.Tried {
		flags |= uint32(guardEgressFlagEGRESS_TRIED)
	}
	if e.DNS {
		flags |= uint32(guardEgressFlagEGRESS_DNS)
	}
	return n.maps[guardMapMeshEgress].Put(cookie, flags)
}

// Egress returns what SetEgress said; the zero Egress if nothing.
func (n *Node) Egress(cookie uint64) (Egress, error) {
	var flags uint32
	if err := n.maps[guardMapMeshEgress].Lookup(cookie, &flags); err != nil {
		return Egress{}, ignoreMissing(err)
	}
	return Egress{
		Denied: flags&uint32(guardEgressFlagEGRESS_DENIED) != 0,
		Tried:  flags&uint32(guardEgressFlagEGRESS_TRIED) != 0,
		DNS:    flags&uint32(guardEgressFlagEGRESS_DNS) != 0,
	}, nil
}

// AllowRange lets a pod send to a range of addresses. Of several ranges the longest counts alone.
func (n *Node) AllowRange(t Table, cookie uint64, to netip.Prefix, a Allowance) error {
	value, err := a.value()
	if err != nil {
		return err
	}
	return n.maps[t.ranges()].Put(rangeKey(cookie, to), value)
}

// ForbidRange ends what AllowRange began. To forbid what is not allowed is no error.
func (n *Node) ForbidRange(t Table, cookie uint64, to netip.Prefix) error {
	return ignoreMissing(n.maps[t.ranges()].Delete(rangeKey(cookie, to)))
}

// Ranges are those that a pod may send to.
func (n *Node) Ranges(t Table, cookie uint64) (ranges []netip.Prefix, err error) {
	var key guardRangeKey
	var value guardAllowance
	entries := n.maps[t.ranges()].Iterate()
	for entries.Next(&key, &value) {
		if key.Cookie == halves(cookie) {
			ranges = append(ranges, key.prefix())
		}
	}
	return ranges, entries.Err()
}

// AllowName lets a pod send to an address that a name has, for a time, which is put off while it is used.
func (n *Node) AllowName(t Table, cookie uint64, to netip.Addr, a Allowance, left time.Duration) error {
	allowance, err := a.value()
	if err != nil {
		return err
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	return n.maps[t.names()].Put(nameKey(cookie, to), guardName{Ends: uint64(now + left), Allowance: allowance})
}

// ForbidName ends what AllowName began. To forbid what is not allowed is no error.
func (n *Node) ForbidName(t Table, cookie uint64, to netip.Addr) error {
	return ignoreMissing(n.maps[t.names()].Delete(nameKey(cookie, to)))
}

// NameLeft is how much longer an address is allowed; zero if it is not.
func (n *Node) NameLeft(t Table, cookie uint64, to netip.Addr) (time.Duration, error) {
	var value guardName
	if err := n.maps[t.names()].Lookup(nameKey(cookie, to), &value); err != nil {
		return 0, ignoreMissing(err)
	}
	now, err := monotonic()
	return max(0, time.Duration(value.Ends)-now), err
}

// Names are the addresses of names that a pod may send to, or might.
func (n *Node) Names(t Table, cookie uint64) (addrs []netip.Addr, err error) {
	var key guardNameKey
	var value guardName
	entries := n.maps[t.names()].Iterate()
	for entries.Next(&key, &value) {
		if key.Cookie == cookie {
			addrs = append(addrs, connectAddr(key.Destination).netip())
		}
	}
	return addrs, entries.Err()
}

func (n *Node) forgetEgress(cookie uint64) error {
	errs := []error{ignoreMissing(n.maps[guardMapMeshEgress].Delete(cookie))}
	for _, t := range []Table{InForce, OnTrial} {
		ranges, err := n.Ranges(t, cookie)
		errs = append(errs, err)
		for _, r := range ranges {
			errs = append(errs, n.ForbidRange(t, cookie, r))
		}
		names, err := n.Names(t, cookie)
		errs = append(errs, err)
		for _, ip := range names {
			errs = append(errs, n.ForbidName(t, cookie, ip))
		}
	}
	_, err := n.TakeTried(func(of uint64) bool { return of == cookie })
	return errors.Join(append(errs, err)...)
}

func halves(cookie uint64) [2]uint32 { return [2]uint32{uint32(cookie), uint32(cookie >> 32)} }

// The families, as mesh.h has them.
const (
	family4 = 2
	family6 = 10

	rangeBits  = 8 * 12 // of the key before the address
	mappedBits = 96     // of a mapped IPv4 address before its own
)

func rangeKey(cookie uint64, p netip.Prefix) guardRangeKey {
	key := guardRangeKey{
		Cookie: halves(cookie), Family: family6, Bits: rangeBits + uint32(p.Bits()), Destination: addrOf(p.Masked().Addr()),
	}
	if p.Addr().Is4() {
		key.Family, key.Bits = family4, key.Bits+mappedBits
	}
	return key
}

func (k guardRangeKey) prefix() netip.Prefix {
	address := netip.AddrFrom16(*(*[16]byte)(unsafe.Pointer(&k.Destination.Word)))
	bits := int(k.Bits) - rangeBits
	if k.Family == family4 {
		address, bits = address.Unmap(), bits-mappedBits
	}
	return netip.PrefixFrom(address, bits)
}

func nameKey(cookie uint64, ip netip.Addr) guardNameKey {
	return guardNameKey{Cookie: cookie, Destination: addrOf(ip)}
}
