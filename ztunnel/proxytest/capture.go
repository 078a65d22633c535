package proxytest

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// AppPort is where a pod's application listens.
	AppPort = 8080
	// firstCaptured is the first of the ports that outbound listeners own.
	firstCaptured = 80
	// lastCaptured leaves room for the pods of one test.
	lastCaptured = 89
	// PlaintextPort stands for any port of a pod that is reached without a tunnel.
	PlaintextPort = 9080
)

// Capture dials as redirect.Capture does.
type Capture struct {
	// Fixed.
	addr netip.Addr
	// Looping, if set, makes connections to the application come back to the
	// plaintext listener, as a lost permit of the kernel would.
	Looping atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	dialed []netip.AddrPort
}

// Dial connects from the pod's own address.
func (c *Capture) Dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	c.mu.Lock()
	c.dialed = append(c.dialed, dst)
	c.mu.Unlock()
	return dialFrom(ctx, c.addr, behind(dst))
}

// DialApp connects the application from the client's address.
func (c *Capture) DialApp(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	if c.Looping.Load() {
		return dialFrom(ctx, client, netip.AddrPortFrom(dst.Addr(), PlaintextPort))
	}
	return dialFrom(ctx, client, behind(dst))
}

// Dialed lists where Dial connected to, in order.
func (c *Capture) Dialed() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.dialed)
}

// behind is what a captured port stands for.
func behind(dst netip.AddrPort) netip.AddrPort {
	if p := dst.Port(); p >= firstCaptured && p <= lastCaptured || p == PlaintextPort {
		return netip.AddrPortFrom(dst.Addr(), AppPort)
	}
	return dst
}

func dialFrom(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
	conn, err := d.DialContext(ctx, "tcp", dst.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
