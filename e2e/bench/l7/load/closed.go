package load

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
)

// closed is connections that have one request answered after the other.
type closed struct {
	carrier carrier
	clients []*client
	counts  []counter
	ending  atomic.Bool
	loops   sync.WaitGroup
	fault   fault
}

// counter stands in a cache line of its own.
type counter struct {
	atomic.Int64
	_ [56]byte
}

func startClosed(to Target, n int) (*closed, error) {
	carrier, err := newCarrier(to)
	if err != nil {
		return nil, err
	}
	requests := to.requests()
	clients, err := dialAll(carrier, n, requests)
	if err != nil {
		carrier.close()
		return nil, err
	}
	l := &closed{carrier: carrier, clients: clients, counts: make([]counter, n)}
	for i, c := range clients {
		l.loops.Go(func() {
			for k := i; !l.ending.Load(); k++ {
				r := &requests[k%len(requests)]
				err := c.send(r)
				if err == nil {
					err = c.receive(func() *plan.Request { return r })
				}
				if err != nil {
					l.fault.set(err)
					return
				}
				l.counts[i].Add(1)
			}
		})
	}
	return l, nil
}

func (l *closed) mark() (sum int64) {
	for i := range l.counts {
		sum += l.counts[i].Load()
	}
	return sum
}

func (l *closed) failed() error { return l.fault.get() }

func (l *closed) stop() (Latencies, error) {
	for _, c := range l.clients {
		c.conn.SetDeadline(time.Now().Add(stopTimeout))
	}
	l.ending.Store(true)
	l.loops.Wait()
	closeAll(l.clients)
	l.carrier.close()
	return Latencies{}, l.fault.get()
}
