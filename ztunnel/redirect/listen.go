package redirect

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"

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
}

// listen makes a listening socket in the namespace for connections to any address of either family.
func (r *Redirect) listen(ns *podns.NetNS, port int) (*net.TCPListener, error) {
	fd, err := r.bindListener(ns, port)
	if errors.Is(err, unix.EADDRINUSE) {
		fd, err = r.bindListener(ns, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close() // FileListener has its own
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return l.(*net.TCPListener), nil
}

func (r *Redirect) bindListener(ns *podns.NetNS, port int) (_ int, err error) {
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	fd, err := socket(ns, unix.AF_INET6)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		address = &unix.SockaddrInet4{Port: port}
		fd, err = socket(ns, unix.AF_INET)
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
	// Connections of a process that was killed may still be in TIME_WAIT at this port.
	if err := setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := r.node.Tag(fd, bpf.Tunnel); err != nil {
		return -1, fmt.Errorf("tag socket: %w", err)
	}
	if err := unix.Bind(fd, address); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	// The kernel lowers the backlog to the namespace's net.core.somaxconn.
	return fd, os.NewSyscallError("listen", unix.Listen(fd, math.MaxInt32))
}

// socket makes a TCP socket in the namespace: not an MPTCP one, whatever the application's are.
func socket(ns *podns.NetNS, family int) (fd int, err error) {
	err = ns.Do(func() error {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return os.NewSyscallError("socket", err)
	})
	return fd, err
}

func setsockopt(fd, level, option, value int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
}

// control runs f on the descriptor of l.
func control(l *net.TCPListener, f func(fd int) error) error {
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
