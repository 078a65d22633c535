package load

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
)

// open is requests that are due at moments that nothing changes: as of many clients that
// know nothing of each other, at random, by the same dice each time. One that finds no
// connection free waits for one, and that counts.
type open struct {
	carrier carrier
	callers []*caller
	rate    int
	fault   fault
	marked  atomic.Bool
	ending  atomic.Bool
	pacing  sync.WaitGroup
	running sync.WaitGroup // the callers

	mu sync.Mutex
	// Guarded by mu: who is free, first come first served, and what waits.
	free     []*caller
	waiting  []*due
	answered int64
}

// due is a request, and when it is due.
type due struct {
	at      time.Time
	request *plan.Request
}

// caller is a connection, and what is under way on it.
type caller struct {
	*client
	sent atomic.Pointer[due]
	// Owned by its goroutine until that has ended.
	latencies []time.Duration
}

func startOpen(to Target, n, rate int) (*open, error) {
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
	l := &open{carrier: carrier, rate: rate}
	for _, c := range clients {
		l.callers = append(l.callers, &caller{client: c})
	}
	l.free = slices.Clone(l.callers)
	for _, c := range l.callers {
		l.running.Go(func() { l.listen(c) })
	}
	l.pacing.Go(func() { l.pace(requests) })
	return l, nil
}

// pace sends what is due, in a thread that the kernel wakes when it says.
func (l *open) pace(requests []plan.Request) {
	runtime.LockOSThread() // for good: nobody else gets a thread so exact
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	random := rand.New(rand.NewPCG(1, 2))
	next := time.Now()
	for k := 0; !l.ending.Load(); k++ {
		next = next.Add(time.Duration(random.ExpFloat64() * float64(time.Second) / float64(l.rate)))
		for wait := time.Until(next); wait > 0; wait = time.Until(next) {
			unix.Nanosleep(&unix.Timespec{Sec: int64(wait / time.Second), Nsec: int64(wait % time.Second)}, nil)
		}
		l.dispatch(&due{next, &requests[k%len(requests)]})
	}
}

// dispatch sends a request by whoever is free for the longest.
func (l *open) dispatch(d *due) {
	l.mu.Lock()
	if len(l.free) == 0 {
		l.waiting = append(l.waiting, d)
		l.mu.Unlock()
		return
	}
	c := l.free[0]
	l.free = l.free[1:]
	l.mu.Unlock()
	l.send(c, d)
}

func (l *open) send(c *caller, d *due) {
	c.sent.Store(d)
	if err := c.send(d.request); err != nil {
		l.fault.set(err)
	}
}

// listen takes the responses of one connection.
func (l *open) listen(c *caller) {
	sent := func() *plan.Request {
		if d := c.sent.Load(); d != nil {
			return d.request
		}
		return nil
	}
	for {
		if err := c.receive(sent); err != nil {
			if !l.ending.Load() || c.sent.Load() != nil {
				l.fault.set(err)
			}
			return
		}
		took := time.Since(c.sent.Load().at)
		if l.marked.Load() {
			c.latencies = append(c.latencies, took)
		}
		c.sent.Store(nil)
		l.mu.Lock()
		l.answered++
		var next *due
		if len(l.waiting) > 0 {
			next, l.waiting = l.waiting[0], l.waiting[1:]
		} else {
			l.free = append(l.free, c)
		}
		l.mu.Unlock()
		if next != nil {
			l.send(c, next)
		}
	}
}

func (l *open) mark() int64 {
	l.marked.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered
}

func (l *open) failed() error { return l.fault.get() }

func (l *open) stop() (Latencies, error) {
	l.mu.Lock()
	behind := len(l.waiting)
	l.mu.Unlock()
	l.ending.Store(true)
	l.pacing.Wait()
	if behind > l.rate { // a second's: it cannot keep up, and has no latency
		l.fault.set(fmt.Errorf("%d requests wait: %d a second are too many", behind, l.rate))
	}
	for deadline := time.Now().Add(stopTimeout); l.fault.get() == nil && !l.idle(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.fault.set(errors.New("requests are not answered"))
		}
	}
	for _, c := range l.callers {
		c.conn.SetReadDeadline(time.Unix(1, 0))
	}
	l.running.Wait()
	var all []time.Duration
	for _, c := range l.callers {
		all = append(all, c.latencies...)
		c.conn.Close()
	}
	l.carrier.close()
	slices.Sort(all)
	return Latencies{
		P50: result.Percentile(all, 0.50), P99: result.Percentile(all, 0.99), P999: result.Percentile(all, 0.999), Samples: len(all),
	}, l.fault.get()
}

// idle tells whether nothing is under way.
func (l *open) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) == 0 && len(l.free) == len(l.callers)
}
