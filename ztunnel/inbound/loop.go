package inbound

import (
	"net/netip"
	"sync"
)

// loops finds connections to the application that the kernel steered back to
// our own plaintext listener: then the address that one was dialed from is the
// one that the other was accepted from. Which of the two is seen first is
// chance, so either finds the other, and both are refused.
type loops struct {
	mu sync.Mutex
	// Guarded by mu. Counts, since a port may be used again while the former
	// use is still being forgotten.
	out map[netip.AddrPort]int
	in  map[netip.AddrPort]int
}

func newLoops() loops {
	return loops{out: map[netip.AddrPort]int{}, in: map[netip.AddrPort]int{}}
}

// dialed registers the address an application was dialed from, and reports a loop.
func (l *loops) dialed(from netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out[from]++
	return l.in[from] > 0
}

// accepted registers the address of a plaintext client, and reports a loop.
func (l *loops) accepted(from netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in[from]++
	return l.out[from] > 0
}

func (l *loops) forgetDialed(from netip.AddrPort)   { l.forget(l.out, from) }
func (l *loops) forgetAccepted(from netip.AddrPort) { l.forget(l.in, from) }

func (l *loops) forget(m map[netip.AddrPort]int, from netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m[from]--; m[from] <= 0 {
		delete(m, from)
	}
}
