package inbound

import (
	"net/netip"
	"sync"
)

// loops finds connections to the application that the kernel steered back to
// our own plaintext listener: then the ends of what was dialed are those of
// what was accepted. Which of the two is seen first is chance, so either finds
// the other, and both are refused.
type loops struct {
	mu sync.Mutex
	// Guarded by mu. Counts, since a port may be used again while the former
	// use is still being forgotten.
	out map[ends]int
	in  map[ends]int
}

// ends of a connection to an application. One address alone is not enough: a
// port may serve connections to several ports of a pod.
type ends struct{ from, to netip.AddrPort }

func newLoops() loops {
	return loops{out: map[ends]int{}, in: map[ends]int{}}
}

// dialed registers a connection to an application, and reports a loop.
func (l *loops) dialed(e ends) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out[e]++
	return l.in[e] > 0
}

// accepted registers that of a plaintext client, and reports a loop.
func (l *loops) accepted(e ends) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in[e]++
	return l.out[e] > 0
}

func (l *loops) forgetDialed(e ends)   { l.forget(l.out, e) }
func (l *loops) forgetAccepted(e ends) { l.forget(l.in, e) }

func (l *loops) forget(m map[ends]int, e ends) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m[e]--; m[e] <= 0 {
		delete(m, e)
	}
}
