package quota

import (
	"net"
	"net/netip"
	"sync"
)

// Listener closes connections of an address that has as many open as it may, as
// soon as they are accepted: one client cannot take a server from the others.
type Listener struct {
	net.Listener
	counter *Counter[netip.Addr]
	refused func(netip.Addr)
}

// NewListener wraps a listener of TCP. refused, if not nil, is told of each
// connection that was closed.
func NewListener(l net.Listener, perAddress int, refused func(netip.Addr)) *Listener {
	return &Listener{Listener: l, counter: NewCounter[netip.Addr](perAddress), refused: refused}
}

// Accept returns the next connection that is let in.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := AddrOf(conn.RemoteAddr())
		if l.counter.Take(addr) {
			return &counted{conn, sync.OnceFunc(func() { l.counter.Give(addr) })}, nil
		}
		conn.Close()
		if l.refused != nil {
			l.refused(addr)
		}
	}
}

type counted struct {
	net.Conn
	give func()
}

func (c *counted) Close() error {
	defer c.give()
	return c.Conn.Close()
}

// AddrOf is a peer's IP address; the zero Addr, which counts as one, if it has none.
func AddrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
