package simulated

import (
	"bytes"
	"encoding/binary"
	"maps"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/topology"
)

// wire watches what passes between nodes.
type wire struct {
	mu   sync.Mutex
	what sight
}

// sight is what was seen on the wire.
type sight struct {
	ports  map[uint16]bool // destinations of TCP packets
	secret bool            // something was readable that must not be
}

func (w *wire) seen() sight {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sight{ports: maps.Clone(w.what.ports), secret: w.what.secret}
}

func (w *wire) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what = sight{ports: make(map[uint16]bool)}
}

// watchWire watches until the test ends.
func watchWire(t *testing.T, netns *topology.NetNS) *wire {
	t.Helper()
	w := &wire{}
	w.reset()
	var fd int
	err := netns.Do(func() (err error) {
		// In network byte order, where packet(7) wants it.
		protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL})
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		frame := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, frame, 0)
			select {
			case <-stopped:
				return
			default:
			}
			if err == nil {
				w.note(frame[:n])
			}
		}
	}()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(stopped)
		<-ended
		unix.Close(fd)
	})
	return w
}

const (
	etherHeader = 14
	ipv6Header  = 40
	protocolTCP = 6
)

// note looks at one frame: Ethernet, then IPv4 (RFC 791) or IPv6 (RFC 8200), then TCP.
func (w *wire) note(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what.secret = w.what.secret || bytes.Contains(frame, []byte(secret))
	if len(frame) < etherHeader+ipv6Header+4 {
		return
	}
	ip, tcp := frame[etherHeader:], 0
	switch {
	case ip[0]>>4 == 4 && ip[9] == protocolTCP:
		tcp = int(ip[0]&0xf) * 4
	case ip[0]>>4 == 6 && ip[6] == protocolTCP:
		tcp = ipv6Header
	default:
		return
	}
	w.what.ports[binary.BigEndian.Uint16(ip[tcp+2:])] = true
}
