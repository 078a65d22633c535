package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sendRaw sends segments past TCP, by a raw socket.
func sendRaw(address string) error {
	return sendForged(address, func(f forged) [][]byte { return [][]byte{f.ip(nil, f.tcp())} })
}

// sendWithOptions sends segments behind IP options, where a parser that expects
// TCP at a fixed place finds something else.
func sendWithOptions(address string) error {
	return sendForged(address, func(f forged) [][]byte {
		options := []byte{1, 1, 1, 1} // four times: no operation
		if f.to.Addr().Is6() {
			options = []byte{unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0} // destination options: padding
		}
		return [][]byte{f.ip(options, f.tcp())}
	})
}

// sendFragments sends segments in two pieces: the second has no ports.
func sendFragments(address string) error {
	return sendForged(address, func(f forged) [][]byte {
		segment := f.tcp()
		const first = 16 // not even the whole TCP header
		id := rand.Uint32()
		return [][]byte{f.fragment(id, 0, true, segment[:first]), f.fragment(id, first, false, segment[first:])}
	})
}

func sendForged(address string, packets func(forged) [][]byte) error {
	segments, err := forge(address)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range segments {
		for _, packet := range packets(f) {
			errs = append(errs, f.send(packet))
		}
	}
	return errors.Join(errs...)
}

// send hands a whole IP packet to a raw socket.
func (f forged) send(packet []byte) error {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: f.to.Addr().As16()})
	if f.to.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: f.to.Addr().As4()}
	}
	// IPPROTO_RAW: the packet has its header.
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, packet, 0, to)
}

// ip puts the header before a segment: options of IPv4, or one extension header
// of IPv6, in which the next one is already named.
func (f forged) ip(options, segment []byte) []byte {
	if f.to.Addr().Is4() {
		return f.ip4(uint16(rand.Uint32()), 0, options, segment)
	}
	next := byte(unix.IPPROTO_TCP)
	if options != nil {
		next = unix.IPPROTO_DSTOPTS
	}
	return f.ip6(next, append(options, segment...))
}

func (f forged) fragment(id uint32, offset int, more bool, piece []byte) []byte {
	flag := uint16(0)
	if more {
		flag = 1
	}
	if f.to.Addr().Is4() {
		return f.ip4(uint16(id), uint16(offset/8)|flag<<13, nil, piece)
	}
	header := []byte{unix.IPPROTO_TCP, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(header[2:], uint16(offset/8)<<3|flag)
	binary.BigEndian.PutUint32(header[4:], id)
	return f.ip6(unix.IPPROTO_FRAGMENT, append(header, piece...))
}

func (f forged) ip4(id, fragment uint16, options, payload []byte) []byte {
	size := 20 + len(options)
	h := make([]byte, 20, size+len(payload))
	h[0] = 4<<4 | byte(size/4)
	binary.BigEndian.PutUint16(h[2:], uint16(size+len(payload)))
	binary.BigEndian.PutUint16(h[4:], id)
	binary.BigEndian.PutUint16(h[6:], fragment)
	h[8], h[9] = 64, unix.IPPROTO_TCP
	copy(h[12:], f.from.Addr().AsSlice())
	copy(h[16:], f.to.Addr().AsSlice())
	h = append(h, options...)
	binary.BigEndian.PutUint16(h[10:], checksum16(h))
	return append(h, payload...)
}

func (f forged) ip6(next byte, payload []byte) []byte {
	h := make([]byte, 40, 40+len(payload))
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = next, 64
	copy(h[8:], f.from.Addr().AsSlice())
	copy(h[24:], f.to.Addr().AsSlice())
	return append(h, payload...)
}

// sendByPacketSocket sends segments past IP, by a packet socket; and once more
// past the queueing discipline, where programs at a link's way out are run.
func sendByPacketSocket(address string) error {
	segments, err := forge(address)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range segments {
		for _, bypass := range []int{0, 1} {
			errs = append(errs, f.sendFrame(f.ip(nil, f.tcp()), bypass))
		}
	}
	return errors.Join(errs...)
}

func (f forged) sendFrame(packet []byte, bypass int) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	gateway, err := neighbour(link.Index, f.to.Addr())
	if err != nil {
		return err
	}
	kind := uint16(unix.ETH_P_IPV6)
	if f.to.Addr().Is4() {
		kind = unix.ETH_P_IP
	}
	kind = kind<<8 | kind>>8 // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, bypass); err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Protocol: kind, Ifindex: link.Index, Halen: uint8(len(gateway))}
	copy(to.Addr[:], gateway)
	return unix.Sendto(fd, packet, 0, to)
}

// neighbour is the hardware address of whoever forwards for the pod.
func neighbour(link int, to netip.Addr) (net.HardwareAddr, error) {
	family := netlink.FAMILY_V6
	if to.Is4() {
		family = netlink.FAMILY_V4
	}
	all, err := netlink.NeighList(link, family)
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if len(n.HardwareAddr) == 6 && n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE|unix.NUD_NOARP) == 0 {
			return n.HardwareAddr, nil
		}
	}
	return nil, errors.New("no neighbour is known")
}
