package load

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// openers is how many connections are being opened at a time.
const openers = 16

// idle is connections that have been used once and are kept.
type idle struct {
	conns []*net.TCPConn
	fault *fault
}

func startIdle(to netip.AddrPort, n int) (*idle, error) {
	l := &idle{fault: newFault(), conns: make([]*net.TCPConn, n)}
	var group sync.WaitGroup
	for worker := range openers {
		group.Go(func() {
			for i := worker; i < n && l.fault.get() == nil; i += openers {
				conn, err := openIdle(to)
				if err != nil {
					l.fault.set(fmt.Errorf("open connection to %s: %w", to, err))
					return
				}
				l.conns[i] = conn
			}
		})
	}
	group.Wait()
	if err := l.fault.get(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func openIdle(to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := dial(to)
	if err != nil {
		return nil, err
	}
	if err := exchange(conn, newMessage()); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return conn, nil
}

func (l *idle) mark() int64   { return int64(len(l.conns)) }
func (l *idle) failed() error { return nil }

// stop demands that each connection still works: one that was dropped would have
// cost no memory.
func (l *idle) stop() (Latencies, error) {
	message := newMessage()
	for _, conn := range l.conns {
		if err := exchange(conn, message); err != nil {
			l.fault.set(fmt.Errorf("use a connection that was idle: %w", err))
			break
		}
	}
	l.close()
	return Latencies{}, l.fault.get()
}

func (l *idle) close() {
	for _, conn := range l.conns {
		if conn != nil {
			conn.Close()
		}
	}
}
