package load

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/result"
)

// expectedPings makes room for a window's latencies ahead of it.
const expectedPings = 1 << 17

// ping is connections that send a message and wait for it to come back.
type ping struct {
	conns  []*net.TCPConn
	marked atomic.Bool
	ending atomic.Bool
	count  atomic.Int64
	loops  sync.WaitGroup
	fault  *fault

	mu        sync.Mutex
	latencies []time.Duration
}

func startPing(to netip.AddrPort, n int) (*ping, error) {
	p := &ping{fault: newFault()}
	for range n {
		conn, err := dial(to)
		if err == nil {
			p.conns = append(p.conns, conn)
			err = exchange(conn, newMessage())
		}
		if err != nil {
			p.close()
			return nil, fmt.Errorf("open connection to %s: %w", to, err)
		}
	}
	for _, conn := range p.conns {
		p.loops.Go(func() {
			if err := p.loop(conn); err != nil {
				p.fault.set(err)
			}
		})
	}
	return p, nil
}

func newMessage() []byte {
	m := make([]byte, Message)
	m[0] = modeEcho
	return m
}

// exchange sends a message and waits until all of it is back.
func exchange(conn *net.TCPConn, message []byte) error {
	conn.SetDeadline(time.Now().Add(dialTimeout))
	return roundTrip(conn, message)
}

func roundTrip(conn *net.TCPConn, message []byte) error {
	if _, err := conn.Write(message); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	if _, err := io.ReadFull(conn, message); err != nil {
		return fmt.Errorf("wait for the message: %w", err)
	}
	return nil
}

func (p *ping) loop(conn *net.TCPConn) error {
	// One deadline for all: setting one for each would be part of the time.
	conn.SetDeadline(time.Time{})
	message := newMessage()
	latencies := make([]time.Duration, 0, expectedPings)
	for !p.ending.Load() {
		begin := time.Now()
		if err := roundTrip(conn, message); err != nil {
			return err
		}
		if p.marked.Load() {
			latencies = append(latencies, time.Since(begin))
			p.count.Add(1)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latencies = append(p.latencies, latencies...)
	return nil
}

func (p *ping) mark() int64 {
	p.marked.Store(true)
	return p.count.Load()
}

func (p *ping) failed() error { return p.fault.get() }

func (p *ping) stop() (Latencies, error) {
	for _, conn := range p.conns {
		conn.SetDeadline(time.Now().Add(dialTimeout))
	}
	p.ending.Store(true)
	p.loops.Wait()
	p.close()
	slices.Sort(p.latencies)
	return Latencies{
		P50:     result.Percentile(p.latencies, 0.50),
		P99:     result.Percentile(p.latencies, 0.99),
		P999:    result.Percentile(p.latencies, 0.999),
		Samples: len(p.latencies),
	}, p.fault.get()
}

func (p *ping) close() {
	for _, conn := range p.conns {
		conn.Close()
	}
}
