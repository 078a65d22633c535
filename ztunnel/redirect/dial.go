package redirect

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
)

// A portRange has both its ends in it.
type portRange struct{ first, last uint16 }

// spoofedPorts are what is bound together with a client's address: they lie below those that clients are given by default,
// for the client may have a connection of its own to the same port of the pod, and two connections cannot have the same ends.
var spoofedPorts = portRange{1024, 32767}

// spoofAttempts is how many ports are tried: that all of them are taken while one in four is free happens once in 10^8 times.
const spoofAttempts = 64

func (r portRange) random() uint16 {
	return r.first + uint16(rand.IntN(int(r.last-r.first)+1))
}

// Dial connects from the pod's namespace, with the pod's address, past outbound capture. The error of a failed connection
// wraps its errno.
func (c *Capture) Dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	conn, err := c.connect(ctx, dst, func(fd int) error { return c.redirect.node.Tag(fd, bpf.Tunnel) })
	if err != nil {
		return nil, fmt.Errorf("dial %s from pod %s: %w", dst, c.pod.UID, err)
	}
	return conn, nil
}

// DialApp connects to the pod's application at dst, one of the pod's addresses, past the pod's listeners. The application
// sees the client's address, though not its port; it sees the pod's own if the client is the pod, or of another family than
// dst. The error of a failed connection wraps its errno: ECONNREFUSED if nobody listens.
func (c *Capture) DialApp(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	conn, err := c.dialApp(ctx, client.Unmap(), netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()))
	if err != nil {
		return nil, fmt.Errorf("connect application at %s of pod %s for %s: %w", dst, c.pod.UID, client, err)
	}
	return conn, nil
}

func (c *Capture) dialApp(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	if dst.Addr() != c.ip4 && dst.Addr() != c.ip6 {
		return nil, errors.New("not an address of the pod")
	}
	if c.isOwnPort(dst.Port()) {
		return nil, fmt.Errorf("the port is ztunnel's own: %w", os.NewSyscallError("connect", unix.ECONNREFUSED))
	}
	if client == c.ip4 || client == c.ip6 || client.BitLen() != dst.Addr().BitLen() {
		return c.connect(ctx, dst, func(fd int) error { return c.redirect.node.Tag(fd, bpf.Delivery) })
	}
	for attempt := 1; ; attempt++ {
		from := netip.AddrPortFrom(client, c.redirect.spoofed.random())
		conn, err := c.connect(ctx, dst, func(fd int) error { return c.spoof(fd, from) })
		// By another delivery (in use by bind, not available to connect), or by the client itself (EPERM from connect.c).
		taken := errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EPERM)
		if !taken || attempt == spoofAttempts {
			return conn, err
		}
	}
}

// isOwnPort tells whether one of the pod's listeners of TCP is bound to a port.
func (c *Capture) isOwnPort(port uint16) bool {
	for kind := range c.listeners() {
		if c.ports[kind] == port {
			return true
		}
	}
	return false
}

// spoof gives a socket the client's address, the mark that brings the application's answers back to it, and passage.
func (c *Capture) spoof(fd int, client netip.AddrPort) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if client.Addr().Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if err := setsockopt(fd, level, option, 1); err != nil {
		return err
	}
	if err := setsockopt(fd, unix.SOL_SOCKET, unix.SO_MARK, bpf.Mark); err != nil {
		return err
	}
	// One port may serve connections to several ports of the application.
	if err := setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := c.redirect.node.Tag(fd, bpf.Delivery); err != nil {
		return fmt.Errorf("tag socket: %w", err)
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(client)))
}

// connect makes a socket in the pod's namespace, has it prepared, and connects it without holding a thread meanwhile.
func (c *Capture) connect(ctx context.Context, dst netip.AddrPort, prepare func(fd int) error) (*net.TCPConn, error) {
	family := unix.AF_INET6
	if dst.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := socket(c.pod.NetNS, family, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	if err := prepare(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Before the poller knows the socket, which it would report ready while it is not connecting.
	if err := unix.Connect(fd, sockaddr(dst)); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	file := os.NewFile(uintptr(fd), "connection")
	defer file.Close() // FileConn has its own
	if err := waitConnected(ctx, file); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// waitConnected waits for the end of connect(2), or of ctx.
func waitConnected(ctx context.Context, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		done, result = connected(int(fd))
		return done
	})
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return errors.Join(err, result)
}

// connected tells whether the connection stands or failed. The poller may wake a waiter early.
func connected(fd int) (bool, error) {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, os.NewSyscallError("getsockopt", err)
	}
	if errno != 0 {
		return true, os.NewSyscallError("connect", unix.Errno(errno))
	}
	_, err = unix.Getpeername(fd)
	return err == nil, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
