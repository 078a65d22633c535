package netnstest

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A Sniffer keeps the frames that come in by a device: of a pod's port, what the pod sends.
type Sniffer struct {
	t       testing.TB
	file    *os.File
	running sync.WaitGroup
	closed  atomic.Bool

	mu     sync.Mutex
	frames [][]byte
}

// Sniff keeps what comes in by a device of the namespace until the test ends, each frame from its Ethernet header on.
func (n *NetNS) Sniff(device string) *Sniffer {
	n.t.Helper()
	s := &Sniffer{t: n.t}
	n.must(func() error {
		at, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		const every = 0x0300 // ETH_P_ALL, in network byte order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, every)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		s.file = os.NewFile(uintptr(fd), "packets")
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: at.Index, Protocol: every}))
	})
	n.t.Cleanup(func() { s.closed.Store(true); s.file.Close(); s.running.Wait() })
	s.running.Go(s.run)
	return s
}

// SniffPort keeps what the pod sends to its node.
func (p *Pod) SniffPort() *Sniffer { return p.Node.Sniff(p.port) }

func (s *Sniffer) run() {
	raw, err := s.file.SyscallConn()
	if err != nil {
		s.t.Error(err)
		return
	}
	frame := make([]byte, 1<<16)
	var failed error
	err = raw.Read(func(fd uintptr) (done bool) {
		for {
			n, from, err := unix.Recvfrom(int(fd), frame, 0)
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if failed = err; err != nil {
				return true
			}
			if to, ok := from.(*unix.SockaddrLinklayer); ok && to.Pkttype != unix.PACKET_OUTGOING {
				s.mu.Lock()
				s.frames = append(s.frames, slices.Clone(frame[:n]))
				s.mu.Unlock()
			}
		}
	})
	if err = errors.Join(err, failed); err != nil && !s.closed.Load() {
		s.t.Errorf("sniff: %v", err) // what came since was not kept
	}
}

// Take returns the frames that came since the last call.
func (s *Sniffer) Take() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.frames
	s.frames = nil
	return taken
}
