package redirect

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A syn is the headers of a SYN, IP's and TCP's, as hold.c hands them over: one that readSYN took apart.
type syn []byte

// Sizes and offsets of RFC 791, RFC 8200, RFC 9293 and RFC 792.
const (
	ip4Size  = 20
	ip6Size  = 40
	tcpSize  = 20
	icmpSize = 8
	udpSize  = 8

	tcpFlags    = 13
	tcpChecksum = 16
	flagSYN     = 0x02
	flagRST     = 0x04
	flagACK     = 0x10
)

// readSYN tells whether headers are those of a SYN, whole and without options that it would not know, and whose.
func readSYN(headers []byte) (s syn, client, dst netip.AddrPort, ok bool) {
	s = headers
	if len(s) < ip4Size {
		return nil, client, dst, false
	}
	at, size := s.ipSize(), 0
	switch s[0] >> 4 {
	case 4:
		ok = at >= ip4Size && s[9] == unix.IPPROTO_TCP
	case 6:
		ok = len(s) >= ip6Size && s[6] == unix.IPPROTO_TCP
	}
	if !ok || len(s) < at+tcpSize {
		return nil, client, dst, false
	}
	size = int(s[at+12]>>4) * 4
	if size < tcpSize || len(s) != at+size || s[at+tcpFlags]&(flagSYN|flagACK) != flagSYN {
		return nil, client, dst, false
	}
	from, to := s.addresses()
	source, _ := netip.AddrFromSlice(from)
	destination, _ := netip.AddrFromSlice(to)
	return s, netip.AddrPortFrom(source, binary.BigEndian.Uint16(s[at:])), netip.AddrPortFrom(destination, binary.BigEndian.Uint16(s[at+2:])), true
}

func (s syn) is4() bool { return s[0]>>4 == 4 }

// ipSize is where TCP begins.
func (s syn) ipSize() int {
	if s.is4() {
		return int(s[0]&0xf) * 4
	}
	return ip6Size
}

func (s syn) tcp() []byte { return s[s.ipSize():] }

func (s syn) addresses() (source, destination []byte) {
	if s.is4() {
		return s[12:16], s[16:20]
	}
	return s[8:24], s[24:40]
}

// complete is the SYN as it goes on: with its checksums, without data. What TCP Fast Open put there is sent again by the
// application's kernel, for it is not acknowledged.
func (s syn) complete() []byte {
	p := append([]byte(nil), s...)
	source, destination := s.addresses()
	if s.is4() {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[10], p[11] = 0, 0 // the kernel computes it
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip6Size))
	}
	sumTCP(p[s.ipSize():], source, destination)
	return p
}

// reset is what a host answers where nobody listens: a reset that acknowledges the SYN (RFC 9293 section 3.10.7.1).
func (s syn) reset() []byte {
	source, destination := s.addresses()
	p := s.answer(unix.IPPROTO_TCP, tcpSize, destination, source)
	tcp, asked := p[len(p)-tcpSize:], s.tcp()
	copy(tcp[0:2], asked[2:4])
	copy(tcp[2:4], asked[0:2])
	binary.BigEndian.PutUint32(tcp[8:], binary.BigEndian.Uint32(asked[4:])+1)
	tcp[12] = tcpSize / 4 << 4
	tcp[tcpFlags] = flagRST | flagACK
	sumTCP(tcp, destination, source)
	return p
}

// unreachable is what the client's own host says of a destination that it cannot reach. code is ICMP's for an IPv4 SYN, and
// ICMPv6's for an IPv6 one.
func (s syn) unreachable(code byte) []byte {
	source, _ := s.addresses()
	cited := s.complete()
	if s.is4() {
		p := s.answer(unix.IPPROTO_ICMP, icmpSize+len(cited), source, source)
		icmp := p[ip4Size:]
		icmp[0], icmp[1] = icmp4Unreachable, code
		copy(icmp[icmpSize:], cited)
		binary.BigEndian.PutUint16(icmp[2:], fold(sum(0, icmp)))
		return p
	}
	p := s.answer(unix.IPPROTO_ICMPV6, icmpSize+len(cited), source, source)
	icmp := p[ip6Size:]
	icmp[0], icmp[1] = icmp6Unreachable, code
	copy(icmp[icmpSize:], cited)
	binary.BigEndian.PutUint16(icmp[2:], fold(sum(pseudo(unix.IPPROTO_ICMPV6, len(icmp), source, source), icmp)))
	return p
}

// Types and codes of RFC 792, RFC 1812 and RFC 4443.
const (
	icmp4Unreachable = 3
	icmp4Network     = 0
	icmp4Host        = 1

	icmp6Unreachable = 1
	icmp6NoRoute     = 0
	icmp6Forbidden   = 1
	icmp6Address     = 3
)

// answer is an IP header and room for size bytes of a protocol.
func (s syn) answer(protocol byte, size int, source, destination []byte) []byte {
	return ipPacket(s.is4(), protocol, size, source, destination)
}

// ipPacket is an IP header and room for size bytes of a protocol.
func ipPacket(is4 bool, protocol byte, size int, source, destination []byte) []byte {
	const ttl = 64
	if is4 {
		p := make([]byte, ip4Size+size)
		p[0], p[8], p[9] = 4<<4|ip4Size/4, ttl, protocol
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		copy(p[12:], source)
		copy(p[16:], destination)
		return p
	}
	p := make([]byte, ip6Size+size)
	p[0], p[6], p[7] = 6<<4, protocol, ttl
	binary.BigEndian.PutUint16(p[4:], uint16(size))
	copy(p[8:], source)
	copy(p[24:], destination)
	return p
}

func sumTCP(segment, source, destination []byte) {
	segment[tcpChecksum], segment[tcpChecksum+1] = 0, 0
	binary.BigEndian.PutUint16(segment[tcpChecksum:], fold(sum(pseudo(unix.IPPROTO_TCP, len(segment), source, destination), segment)))
}

// pseudo is the sum of the header that TCP's and ICMPv6's checksums include (RFC 9293 section 3.1, RFC 8200 section 8.1).
func pseudo(protocol byte, size int, source, destination []byte) uint32 {
	return sum(sum(uint32(protocol)+uint32(size), source), destination)
}

// sum adds 16-bit words (RFC 1071).
func sum(total uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	return total
}

func fold(total uint32) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}
