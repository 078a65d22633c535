package redirect

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// SYNs as hold.c hands them over, from 10.1.0.2:40000 to 10.2.0.2:80 and from [fd00:1::2]:40000 to [fd00:2::2]:80: with
// options (MSS, SACK, timestamps, window scale), with what checksum offload leaves in the place of the checksum.
var (
	syn4 = unhex("4500003c1c4640004006 0000 0a010002 0a020002 9c400050 11223344 00000000 a002 faf0 1430 0000 020405b4 0402080a 00000001 00000000 01030307")
	syn6 = unhex("60012345 0028 06 40 fd000001000000000000000000000002 fd000002000000000000000000000002 9c400050 11223344 00000000 a002 faf0 1430 0000 020405b4 0402080a 00000001 00000000 01030307")
)

func unhex(text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func TestReadSYN(t *testing.T) {
	for _, c := range []struct {
		headers     []byte
		client, dst string
	}{{syn4, "10.1.0.2:40000", "10.2.0.2:80"}, {syn6, "[fd00:1::2]:40000", "[fd00:2::2]:80"}} {
		s, client, dst, ok := readSYN(c.headers)
		if !ok || client != netip.MustParseAddrPort(c.client) || dst != netip.MustParseAddrPort(c.dst) {
			t.Fatalf("%s -> %s, %v", client, dst, ok)
		}
		for n := range c.headers {
			if _, _, _, ok := readSYN(c.headers[:n]); ok {
				t.Errorf("%s: %d bytes of %d are a SYN", c.client, n, len(c.headers))
			}
		}
		for _, flags := range []byte{0, flagACK, flagSYN | flagACK, flagRST} {
			other := bytes.Clone(c.headers)
			other[s.ipSize()+tcpFlags] = flags
			if _, _, _, ok := readSYN(other); ok {
				t.Errorf("%s: flags %#x are a SYN", c.client, flags)
			}
		}
	}
}

// What goes on is the SYN, with checksums; what answers goes back, with checksums, and acknowledges the SYN or cites it.
func TestAnswersToSYN(t *testing.T) {
	for _, headers := range [][]byte{syn4, syn6} {
		s, _, _, _ := readSYN(headers)
		source, destination := s.addresses()
		at := s.ipSize()
		passed := syn(s.complete())
		if sum := fold(sum(pseudo(unix.IPPROTO_TCP, len(passed.tcp()), source, destination), passed.tcp())); sum != 0 {
			t.Errorf("the checksum of the SYN is wrong by %#x", sum)
		}
		copy(passed[at+tcpChecksum:], s[at+tcpChecksum:at+tcpChecksum+2])
		if !bytes.Equal(passed, s) {
			t.Errorf("the SYN was changed:\n%x\n%x", passed, s)
		}

		reset := syn(s.reset())
		from, to := reset.addresses()
		tcp := reset.tcp()
		if !bytes.Equal(from, destination) || !bytes.Equal(to, source) {
			t.Errorf("the reset goes from %x to %x", from, to)
		}
		if sum := fold(sum(pseudo(unix.IPPROTO_TCP, len(tcp), from, to), tcp)); sum != 0 {
			t.Errorf("the checksum of the reset is wrong by %#x", sum)
		}
		if want := unhex("00509c40 00000000 11223345 5014"); !bytes.Equal(tcp[:14], want) {
			t.Errorf("the reset begins %x, want %x", tcp[:14], want)
		}

		unreachable := syn(s.unreachable(1))
		from, to = unreachable.addresses()
		if !bytes.Equal(from, source) || !bytes.Equal(to, source) {
			t.Errorf("the ICMP message goes from %x to %x", from, to)
		}
		icmp, before := unreachable.tcp(), uint32(0)
		if !s.is4() {
			before = pseudo(unix.IPPROTO_ICMPV6, len(icmp), from, to)
		}
		if sum := fold(sum(before, icmp)); sum != 0 {
			t.Errorf("the checksum of the ICMP message is wrong by %#x", sum)
		}
		if cited, _, _, ok := readSYN(icmp[icmpSize:]); !ok || !bytes.Equal(cited, s.complete()) {
			t.Errorf("the ICMP message cites %x", icmp[icmpSize:])
		}
	}
}
