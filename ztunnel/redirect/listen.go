package redirect

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// preferredPorts are the documented ones. Where a listener is bound does not matter to what steer hands it: if a port is
// taken, by the application or by the ztunnel that this one replaces, any other does.
var preferredPorts = map[bpf.Listener]int{
	bpf.Outbound:  15001,
	bpf.Plaintext: 15006,
	bpf.HBONE:     int(bpf.PortHBONE),
	bpf.DNS:       15053,
	bpf.DNSStream: 15053,
}

// listen makes a listening socket in the namespace for connections to any address of either family.
func (r *Redirect) listen(ns *podns.NetNS, port int) (*net.TCPListener, error) {
	file, err := r.listenFile(ns, unix.SOCK_STREAM, port)
	if err != nil {
		return nil, err
	}
	defer file.Close() // FileListener has its own
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return l.(*net.TCPListener), nil
}

// listenFile makes a socket that is bound to the port, or to another one where it is taken.
func (r *Redirect) listenFile(ns *podns.NetNS, kind, port int) (*os.File, error) {
	fd, err := r.bindListener(ns, kind, port)
	if errors.Is(err, unix.EADDRINUSE) {
		fd, err = r.bindListener(ns, kind, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

func (r *Redirect) bindListener(ns *podns.NetNS, kind, port int) (_ int, err error) {
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	fd, err := socket(ns, unix.AF_INET6, kind)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		address = &unix.SockaddrInet4{Port: port}
		fd, err = socket(ns, unix.AF_INET, kind)
	}
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if _, dual := address.(*unix.SockaddrInet6); dual {
		if err := setsockopt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return -1, err
		}
		if err := setsockopt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1); err != nil {
			return -1, err
		}
	}
	if err := setsockopt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return -1, err
	}
	// Connections of a process that was killed may still be in TIME_WAIT at this port. Datagrams know no such thing, and would
	// share the port with whoever has it.
	if kind == unix.SOCK_STREAM {
		if err := setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return -1, err
		}
	}
	if err := r.node.Tag(fd, bpf.Tunnel); err != nil {
		return -1, fmt.Errorf("tag socket: %w", err)
	}
	if err := unix.Bind(fd, address); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	if kind != unix.SOCK_STREAM {
		return fd, nil
	}
	// The kernel lowers the backlog to the namespace's net.core.somaxconn.
	return fd, os.NewSyscallError("listen", unix.Listen(fd, math.MaxInt32))
}

// socket makes a socket in the namespace for streams, of TCP and not MPTCP, whatever the application's are, or for datagrams.
func socket(ns *podns.NetNS, family, kind int) (fd int, err error) {
	protocol := unix.IPPROTO_TCP
	if kind == unix.SOCK_DGRAM {
		protocol = unix.IPPROTO_UDP
	}
	err = ns.Do(func() error {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
		return os.NewSyscallError("socket", err)
	})
	return fd, err
}

func setsockopt(fd, level, option, value int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
}

// control runs f on the descriptor of l.
func control(l syscall.Conn, f func(fd int) error) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = f(int(fd)) }); err != nil {
		return err
	}
	return result
}
