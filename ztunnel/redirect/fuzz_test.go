package redirect

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzReadSYN: whatever a pod sends, what is taken for its SYN can be passed on
// and answered, with the checksums that its addresses want.
func FuzzReadSYN(f *testing.F) {
	f.Add(syn4)
	f.Add(syn6)
	f.Add(append([]byte{0x4f}, make([]byte, 100)...)) // options that reach to the end
	f.Fuzz(func(t *testing.T, headers []byte) {
		before := bytes.Clone(headers)
		s, client, dst, ok := readSYN(headers)
		if !ok {
			return
		}
		if client.Addr().Is4() != s.is4() || dst.Addr().Is4() != s.is4() {
			t.Fatalf("%s -> %s in version %d", client, dst, headers[0]>>4)
		}
		source, destination := s.addresses()
		passed := syn(s.complete())
		if len(passed) != len(headers) || fold(sum(pseudo(unix.IPPROTO_TCP, len(passed.tcp()), source, destination), passed.tcp())) != 0 {
			t.Fatal("what is passed on is not the SYN, or its checksum is wrong")
		}
		reset := s.reset()
		if tcp := reset[len(reset)-tcpSize:]; tcp[tcpFlags] != flagRST|flagACK || fold(sum(pseudo(unix.IPPROTO_TCP, tcpSize, destination, source), tcp)) != 0 {
			t.Fatal("the reset is none, or its checksum is wrong")
		}
		if got := s.unreachable(1); len(got) <= len(headers) {
			t.Fatal("the ICMP message does not cite the SYN")
		}
		if !bytes.Equal(headers, before) {
			t.Fatal("what was read was changed")
		}
	})
}
