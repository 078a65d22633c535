package wire

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// roomForBursts holds what comes while nobody reads: seconds of a trial.
const roomForBursts = 32 << 20

// A tap sees all that comes in by the links of a network namespace.
type tap struct {
	place string
	// keep chooses by link, where the packet is already known to be TCP.
	keep  func(link string, p Packet) bool
	fd    int
	names map[int]string // of links by number, owned by run
	// enter runs in the tap's namespace.
	namespace *os.File
}

// openTap opens a packet socket in the namespace at path.
func openTap(path, place string, keep func(string, Packet) bool) (*tap, error) {
	namespace, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	t := &tap{place: place, keep: keep, names: map[int]string{}, namespace: namespace, fd: -1}
	err = t.inside(func() error {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		t.fd = fd
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomForBursts); err != nil {
			return fmt.Errorf("make room for bursts: %w", err)
		}
		// So that run looks up now and then.
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	})
	if err != nil {
		t.close()
		return nil, fmt.Errorf("tap %s: %w", place, err)
	}
	return t, nil
}

// inside runs f in the tap's namespace.
func (t *tap) inside(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread is not given back: it ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(t.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func (t *tap) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
	t.namespace.Close()
}

// run hands every packet to found until ctx ends.
func (t *tap) run(ctx context.Context, marker []byte, found func(Packet)) error {
	buffer := make([]byte, 1<<16+64)
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(t.fd, buffer, 0)
		switch err {
		case nil:
		case unix.EAGAIN, unix.EINTR, unix.ENETDOWN: // a link went: others are there
			continue
		default:
			return fmt.Errorf("tap %s: %w", t.place, err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		p, ok := Parse(buffer[:n], marker)
		if !ok {
			continue
		}
		p.At = time.Now()
		name := t.link(link.Ifindex)
		p.Place = t.place + "/" + name
		if t.keep(name, p) {
			found(p)
		}
	}
	return nil
}

// link is the name of a link. One that is gone already has none.
func (t *tap) link(index int) string {
	if name, known := t.names[index]; known {
		return name
	}
	name := "?"
	t.inside(func() error {
		if link, err := net.InterfaceByIndex(index); err == nil {
			name = link.Name
		}
		return nil
	})
	if name != "?" {
		t.names[index] = name
	}
	return name
}

// lost is how many packets found no room since it was asked last.
func (t *tap) lost() (int, error) {
	statistics, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("statistics of tap %s: %w", t.place, err)
	}
	return int(statistics.Drops), nil
}

// record is what taps found so far.
type record struct {
	mu      sync.Mutex
	packets []Packet
}

func (r *record) add(p Packet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packets = append(r.packets, p)
}

// take returns what was found since it was taken last.
func (r *record) take() []Packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.packets
	r.packets = nil
	return taken
}
