package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/e2e/faults/orders"
)

// attacks are ways around a mesh that an application with NET_ADMIN or NET_RAW
// has. Each tries to get [orders.Marker] to IP:PORT in plaintext. What comes of
// it, only the wire shows: an error here is of the try alone.
var attacks = map[string]func(address string) error{
	"rule-deleted":  deleteRules,
	"mark-reset":    resetMark,
	"raw-socket":    sendRaw,
	"packet-socket": sendByPacketSocket,
	"ip-options":    sendWithOptions,
	"fragments":     sendFragments,
}

// deleteRules removes every policy route of the pod. What has a mark goes the
// way of all else then.
func deleteRules(address string) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		errs = append(errs, err)
		for _, rule := range rules {
			if rule.Priority > 0 && rule.Priority < 32766 { // but the kernel's own
				rule.Family = family
				errs = append(errs, netlink.RuleDel(&rule))
			}
		}
	}
	return errors.Join(append(errs, say(address, nil))...)
}

// resetMark takes the mark away, once before the SYN is repeated, and once when
// the connection stands.
func resetMark(address string) error {
	reset := func(conn *net.TCPConn) error {
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		controlled := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 0) })
		return errors.Join(controlled, err)
	}
	return errors.Join(resetMarkOfSYN(address), say(address, reset))
}

// synRepeated is past the first repetition of a SYN.
const synRepeated = 1200 * time.Millisecond

func resetMarkOfSYN(address string) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	family, sockaddr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sockaddr = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	// Nobody waits for it: the SYN has to be repeated first.
	go func() {
		defer unix.Close(fd)
		time.Sleep(synRepeated)
		unix.Write(fd, []byte(orders.Marker+" with a SYN whose mark was reset\n"))
	}()
	if err := unix.Connect(fd, sockaddr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0)
}

// say connects, does something to the connection, and sends.
func say(address string, first func(*net.TCPConn) error) error {
	conn, err := (&net.Dialer{Timeout: askPatience}).Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if first != nil {
		if err := first(conn.(*net.TCPConn)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(conn, "%s of an attacker\n", orders.Marker)
	return err
}

// forged is a TCP segment that no socket of TCP sends.
type forged struct {
	from, to netip.AddrPort
	flags    byte
	payload  string
}

const (
	flagSYN = 0x02
	flagPSH = 0x18 // and ACK
)

// forge makes a SYN and a segment with data, from a port that nobody has.
func forge(address string) ([]forged, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	own, err := ownAddress(to.Addr().Is4())
	if err != nil {
		return nil, err
	}
	from := netip.AddrPortFrom(own, uint16(20000+rand.IntN(10000)))
	return []forged{
		{from, to, flagSYN, ""},
		{from, to, flagPSH, orders.Marker + " forged\n"},
	}, nil
}

// device is the pod's link.
const device = "eth0"

func ownAddress(is4 bool) (netip.Addr, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return netip.Addr{}, err
	}
	all, err := link.Addrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() == is4 && !prefix.Addr().IsLinkLocalUnicast() {
			return prefix.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no address of this family", device)
}

// tcp is the segment, with its checksum (RFC 9293 section 3.1).
func (f forged) tcp() []byte {
	s := make([]byte, 20, 20+len(f.payload))
	binary.BigEndian.PutUint16(s[0:], f.from.Port())
	binary.BigEndian.PutUint16(s[2:], f.to.Port())
	binary.BigEndian.PutUint32(s[4:], 1)
	s[12], s[13] = 5<<4, f.flags
	binary.BigEndian.PutUint16(s[14:], 65535)
	s = append(s, f.payload...)
	pseudo := append(f.from.Addr().AsSlice(), f.to.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(s)))
	pseudo = append(pseudo, 0, 0, 0, unix.IPPROTO_TCP)
	binary.BigEndian.PutUint16(s[16:], checksum16(append(pseudo, s...)))
	return s
}

func checksum16(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) > 0 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
