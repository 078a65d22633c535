package main

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/controller/translate"
)

// enforceAfter is how long enforcing a binding waits for nodes that do not
// acknowledge it: their clients are refused then, until they have heard of it.
const enforceAfter = 30 * time.Second

// bindings know which of them are enforced: a client that has not heard of a
// waypoint yet goes straight to what is behind it, and is kept away only once all
// nodes have. What is bound when the process begins may have been enforced by the
// one before, and is. An enforced one is in force once all nodes have heard of that too.
type bindings struct {
	// Fixed after newBindings.
	acked   func(publication uint64) bool
	changed func() // one is enforced from now on
	settled func() // one is in force
	now     func() time.Time
	wake    chan struct{} // capacity 1

	mu sync.Mutex
	// Guarded by mu.
	begun   bool
	waiting map[translate.Binder]announced
	holds   map[translate.Binder]bool   // enforced
	closing map[translate.Binder]uint64 // the first publication in which it is enforced
	inForce map[translate.Binder]bool
}

// announced is a binding that is not enforced yet.
type announced struct {
	publication uint64
	since       time.Time
}

func newBindings(acked func(publication uint64) bool, changed, settled func()) *bindings {
	return &bindings{
		acked: acked, changed: changed, settled: settled, now: time.Now, wake: make(chan struct{}, 1),
		waiting: make(map[translate.Binder]announced), holds: make(map[translate.Binder]bool),
		closing: make(map[translate.Binder]uint64), inForce: make(map[translate.Binder]bool),
	}
}

// enforced is translate.Input.Enforced. Before the first publication, all are.
func (b *bindings) enforced(binder translate.Binder) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.begun || b.holds[binder]
}

// isInForce tells whether every node sends the clients of a binding to its waypoint,
// and lets in nobody else.
func (b *bindings) isInForce(binder translate.Binder) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inForce[binder]
}

// published tells what is bound in a publication.
func (b *bindings) published(bound []*translate.Bound, publication uint64) {
	b.mu.Lock()
	present := make(map[translate.Binder]bool, len(bound))
	for _, one := range bound {
		binder := one.Binder()
		present[binder] = true
		_, waits := b.waiting[binder]
		_, closes := b.closing[binder]
		switch {
		case !b.begun:
			b.holds[binder] = true
			b.closing[binder] = publication
		case one.Enforced && !closes && !b.inForce[binder]:
			b.closing[binder] = publication
		case !waits && !b.holds[binder]:
			b.waiting[binder] = announced{publication, b.now()}
		}
	}
	for _, forget := range []map[translate.Binder]bool{b.holds, b.inForce} {
		maps.DeleteFunc(forget, func(binder translate.Binder, _ bool) bool { return !present[binder] })
	}
	maps.DeleteFunc(b.closing, func(binder translate.Binder, _ uint64) bool { return !present[binder] })
	maps.DeleteFunc(b.waiting, func(binder translate.Binder, _ announced) bool { return !present[binder] })
	b.begun = true
	wait := len(b.waiting)+len(b.closing) > 0
	b.mu.Unlock()
	if wait {
		b.answered() // nodes that lack nothing have acknowledged it
	}
}

// answered tells that nodes may have come further. It never blocks.
func (b *bindings) answered() {
	select {
	case b.wake <- struct{}{}:
	default: // told already
	}
}

// run enforces what every node has heard of, until ctx ends.
func (b *bindings) run(ctx context.Context) error {
	ticker := time.NewTicker(enforceAfter / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		case <-ticker.C:
		}
		b.check()
	}
}

// check enforces what every node has heard of by now.
func (b *bindings) check() {
	b.mu.Lock()
	enforced, settled := false, false
	for binder, one := range b.waiting {
		if b.acked(one.publication) || b.now().Sub(one.since) >= enforceAfter {
			delete(b.waiting, binder)
			b.holds[binder] = true
			enforced = true
		}
	}
	for binder, publication := range b.closing {
		if b.acked(publication) {
			delete(b.closing, binder)
			b.inForce[binder] = true
			settled = true
		}
	}
	b.mu.Unlock()
	if enforced {
		b.changed()
	}
	if settled {
		b.settled()
	}
}
