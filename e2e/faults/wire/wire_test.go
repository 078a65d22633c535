package wire

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

const marker = "in-clear"

func tcp(source, destination uint16, flags byte, payload string) []byte {
	s := make([]byte, 20)
	binary.BigEndian.PutUint16(s[0:], source)
	binary.BigEndian.PutUint16(s[2:], destination)
	s[12], s[13] = 5<<4, flags
	return append(s, payload...)
}

// packet4 is an IPv4 packet from 10.0.0.1 to 10.0.0.2 (RFC 791 section 3.1).
func packet4(options []byte, fragment uint16, payload []byte) []byte {
	h := make([]byte, 20)
	h[0] = 4<<4 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(h[6:], fragment)
	h[9] = 6
	copy(h[12:], []byte{10, 0, 0, 1})
	copy(h[16:], []byte{10, 0, 0, 2})
	return append(append(h, options...), payload...)
}

// packet6 is an IPv6 packet from fd00::1 to fd00::2 (RFC 8200 section 3).
func packet6(next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6] = 6<<4, next
	h[8], h[23], h[24], h[39] = 0xfd, 1, 0xfd, 2
	return append(h, payload...)
}

func TestPacketsAreParsed(t *testing.T) {
	segment := tcp(40000, 8080, 0x18, marker)
	for name, c := range map[string]struct {
		bytes []byte
		want  Packet // ports and what else is asserted
		is    bool
	}{
		"IPv4":               {packet4(nil, 0x4000, segment), Packet{Source: port(40000), Destination: port(8080), Marked: true}, true},
		"IPv4 options":       {packet4([]byte{1, 1, 1, 1}, 0, segment), Packet{Source: port(40000), Destination: port(8080), Marked: true, Options: true}, true},
		"IPv4 first piece":   {packet4(nil, 0x2000, segment[:16]), Packet{Source: port(40000), Destination: port(8080), Fragment: true}, true},
		"IPv4 tiny piece":    {packet4(nil, 0x2000, segment[:8]), Packet{Fragment: true}, true},
		"IPv4 later piece":   {packet4(nil, 2, segment[16:]), Packet{Fragment: true, Marked: true}, true},
		"IPv4 UDP":           {append(append([]byte{}, packet4(nil, 0, nil)[:9]...), append([]byte{17}, packet4(nil, 0, segment)[10:]...)...), Packet{}, false},
		"IPv6":               {packet6(6, segment), Packet{Source: port(40000), Destination: port(8080), Marked: true}, true},
		"IPv6 options":       {packet6(60, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, segment...)), Packet{Source: port(40000), Destination: port(8080), Options: true, Marked: true}, true},
		"IPv6 first piece":   {packet6(44, append([]byte{6, 0, 0, 1, 0, 0, 0, 9}, segment[:16]...)), Packet{Source: port(40000), Destination: port(8080), Fragment: true}, true},
		"IPv6 later piece":   {packet6(44, append([]byte{6, 0, 0, 16, 0, 0, 0, 9}, segment[16:]...)), Packet{Fragment: true, Marked: true}, true},
		"IPv6 hop and piece": {packet6(0, append([]byte{44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 16, 0, 0, 0, 9}, segment[16:]...)), Packet{Fragment: true, Options: true, Marked: true}, true},
		"IPv6 ICMP":          {packet6(58, segment), Packet{}, false},
		"nothing":            {nil, Packet{}, false},
		"neither":            {[]byte{0x50, 1, 2}, Packet{}, false},
	} {
		p, is := Parse(c.bytes, []byte(marker))
		if is != c.is {
			t.Errorf("%s: is TCP %v, want %v", name, is, c.is)
		}
		if is && (p.Source.Port() != c.want.Source.Port() || p.Destination.Port() != c.want.Destination.Port() ||
			p.Fragment != c.want.Fragment || p.Options != c.want.Options || p.Marked != c.want.Marked) {
			t.Errorf("%s: %+v, want %+v", name, p, c.want)
		}
	}
}

func port(p uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, p) }

// A packet that is cut off is read as far as it goes, and breaks nothing.
func TestEveryTruncationIsParsed(t *testing.T) {
	for _, whole := range [][]byte{
		packet4([]byte{1, 1, 1, 1}, 0, tcp(1, 2, 0x18, marker)),
		packet6(0, append([]byte{44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9}, tcp(1, 2, 0x18, marker)...)),
	} {
		for n := range whole {
			Parse(whole[:n], []byte(marker))
		}
	}
}

func TestPlaintextIsTold(t *testing.T) {
	const mine, other, stranger, node, reused, server = "10.244.1.5", "10.244.2.5", "10.244.2.9", "172.30.0.11", "10.244.1.7", "172.30.0.1"
	who := Who{
		Pods:      map[netip.Addr]bool{netip.MustParseAddr(mine): true, netip.MustParseAddr(other): true, netip.MustParseAddr(reused): true},
		Reused:    map[netip.Addr]bool{netip.MustParseAddr(reused): true},
		APIServer: map[netip.AddrPort]bool{netip.AddrPortFrom(netip.MustParseAddr(server), 6443): true},
		Strangers: map[netip.Addr]bool{netip.MustParseAddr(stranger): true},
		Nodes:     map[netip.Addr]bool{netip.MustParseAddr(node): true}, HealthPort: 8080, TunnelPort: 15008,
	}
	packet := func(from string, fromPort uint16, to string, toPort uint16) Packet {
		return Packet{Source: netip.AddrPortFrom(netip.MustParseAddr(from), fromPort), Destination: netip.AddrPortFrom(netip.MustParseAddr(to), toPort)}
	}
	with := func(p Packet, change func(*Packet)) Packet { change(&p); return p }
	marked := func(p *Packet) { p.Marked = true }
	for name, c := range map[string]struct {
		packet              Packet
		captured, plaintext int
	}{
		"by tunnel":                  {packet(mine, 4000, other, 15008), 1, 0},
		"back by tunnel":             {packet(other, 15008, mine, 4000), 1, 0},
		"in clear, to that port":     {with(packet(mine, 4000, other, 15008), marked), 0, 1},
		"a piece, to that port":      {with(packet(mine, 4000, other, 15008), func(p *Packet) { p.Fragment = true }), 0, 1},
		"options, to that port":      {with(packet(mine, 4000, other, 15008), func(p *Packet) { p.Options = true }), 0, 1},
		"around the tunnel":          {packet(mine, 4000, other, 7100), 0, 1},
		"without payload, and back":  {packet(other, 7100, mine, 4000), 0, 1},
		"to nobody known":            {packet(mine, 4000, "192.0.2.1", 443), 0, 1},
		"a later piece":              {packet(mine, 0, other, 0), 0, 1},
		"the kubelet":                {packet(node, 4000, mine, 8080), 0, 0},
		"to the kubelet":             {packet(mine, 8080, node, 4000), 0, 0},
		"in clear to the kubelet":    {with(packet(mine, 8080, node, 4000), marked), 0, 1},
		"the node, to another port":  {packet(node, 4000, mine, 7100), 0, 1},
		"a stranger asks":            {with(packet(stranger, 4000, mine, 7100), marked), 0, 0},
		"a stranger is refused":      {packet(mine, 7100, stranger, 4000), 0, 0},
		"a stranger is answered":     {with(packet(mine, 7100, stranger, 4000), marked), 0, 1},
		"another pod's, later":       {packet(reused, 4000, server, 6443), 0, 0},
		"and back":                   {packet(server, 6443, reused, 4000), 0, 0},
		"nobody else's":              {packet(mine, 4000, server, 6443), 0, 1},
		"elsewhere":                  {packet(reused, 4000, server, 443), 0, 1},
		"in clear, later":            {with(packet(reused, 4000, server, 6443), marked), 0, 1},
		"strangers among themselves": {with(packet(stranger, 1, "10.244.1.9", 2), marked), 0, 0},
	} {
		v := who.Judge([]Packet{c.packet})
		if v.Captured != c.captured || v.Plaintext != c.plaintext {
			t.Errorf("%s: %d captured, %d in plaintext, want %d, %d", name, v.Captured, v.Plaintext, c.captured, c.plaintext)
		}
	}
	who.StrangersWelcome = true
	if v := who.Judge([]Packet{with(packet(mine, 7100, stranger, 4000), marked)}); v.Plaintext != 0 {
		t.Error("an answer to a stranger who is welcome was counted")
	}
}
