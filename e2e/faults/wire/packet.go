// Package wire counts what crosses the links of nodes during a trial of faults.
//
//	packet.go   bytes of an IP packet -> [Packet] (pure)
//	judge.go    packets, who is who -> how many were plaintext (pure)
//	record.go   a packet socket in a network namespace
//	taps.go     one such in each namespace, followed through power cuts
//
// What a packet is, is read from the packet alone: nothing of the mesh is asked.
package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is one TCP packet, or a piece of one.
type Packet struct {
	At time.Time
	// Place is the link's side at which it was seen.
	Place string
	// Source and Destination have port 0 where the packet does not say it.
	Source, Destination netip.AddrPort
	Flags               byte
	// Fragment is of a packet that was sent in pieces; Options is of one with IP
	// options or extension headers.
	Fragment, Options bool
	// Marked has the marker of the applications in its payload.
	Marked bool
	// Size of the IP packet.
	Size int
}

func (p Packet) String() string {
	kind := ""
	if p.Fragment {
		kind += " fragment"
	}
	if p.Options {
		kind += " with options"
	}
	if p.Marked {
		kind += " in clear"
	}
	return fmt.Sprintf("%s %s > %s flags %#02x%s, %d bytes, at %s", p.At.Format("15:04:05.000"), p.Source, p.Destination, p.Flags, kind, p.Size, p.Place)
}

// Parse reads an IP packet. It is false for what is not TCP.
func Parse(b []byte, marker []byte) (Packet, bool) {
	if len(b) == 0 {
		return Packet{}, false
	}
	p := Packet{Marked: bytes.Contains(b, marker), Size: len(b)}
	var segment []byte
	var ok bool
	switch b[0] >> 4 {
	case 4:
		segment, ok = p.ip4(b)
	case 6:
		segment, ok = p.ip6(b)
	}
	if ok && len(segment) >= 14 {
		p.Source = netip.AddrPortFrom(p.Source.Addr(), binary.BigEndian.Uint16(segment[0:]))
		p.Destination = netip.AddrPortFrom(p.Destination.Addr(), binary.BigEndian.Uint16(segment[2:]))
		p.Flags = segment[13]
	}
	return p, ok
}

// ip4 reads the header (RFC 791 section 3.1) and returns what follows, nothing
// where that is a later piece.
func (p *Packet) ip4(b []byte) ([]byte, bool) {
	if len(b) < 20 || b[9] != unix.IPPROTO_TCP {
		return nil, false
	}
	source, _ := netip.AddrFromSlice(b[12:16])
	destination, _ := netip.AddrFromSlice(b[16:20])
	p.Source, p.Destination = netip.AddrPortFrom(source, 0), netip.AddrPortFrom(destination, 0)
	size := int(b[0]&0xf) * 4
	p.Options = size > 20
	piece := binary.BigEndian.Uint16(b[6:])
	p.Fragment = piece&0x3fff != 0 // more to come, or an offset
	if piece&0x1fff != 0 || size < 20 || size > len(b) {
		return nil, true
	}
	return b[size:], true
}

// ip6 reads the header and those that extend it (RFC 8200 section 4).
func (p *Packet) ip6(b []byte) ([]byte, bool) {
	if len(b) < 40 {
		return nil, false
	}
	source, _ := netip.AddrFromSlice(b[8:24])
	destination, _ := netip.AddrFromSlice(b[24:40])
	p.Source, p.Destination = netip.AddrPortFrom(source, 0), netip.AddrPortFrom(destination, 0)
	next, rest, later := b[6], b[40:], false
	for {
		size := 0
		switch next {
		case unix.IPPROTO_TCP:
			if later {
				return nil, true
			}
			return rest, true
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			p.Options = true
			if len(rest) >= 8 {
				size = 8 + int(rest[1])*8
			}
		case unix.IPPROTO_FRAGMENT:
			p.Fragment = true
			if size = 8; len(rest) >= 8 {
				later = binary.BigEndian.Uint16(rest[2:])>>3 != 0
			}
		default:
			return nil, false
		}
		if size == 0 || len(rest) < size {
			return nil, false
		}
		next, rest = rest[0], rest[size:]
		if later && next == unix.IPPROTO_TCP {
			return nil, true
		}
	}
}
