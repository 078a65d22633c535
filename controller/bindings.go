package main

import (
	"context"
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
// one before, and is.
type bindings struct {
	// Fixed after newBindings.
	acked   func(publication uint64) bool
	changed func()
	now     func() time.Time
	wake    chan struct{} // capacity 1

	mu sync.Mutex
	// Guarded by mu.
	begun   bool
	waiting map[translate.Binder]announced
	holds   map[translate.Binder]bool // enforced
}

// announced is a binding that is not enforced yet.
type announced struct {
	publication uint64
	since       time.Time
}

func newBindings(acked func(publication uint64) bool, changed func()) *bindings {
	return &bindings{
		acked: acked, changed: changed, now: time.Now, wake: make(chan struct{}, 1),
		waiting: make(map[translate.Binder]announced), holds: make(map[translate.Binder]bool),
	}
}

// enforced is translate.Input.Enforced. Before the first publication, all are.
func (b *bindings) enforced(binder translate.Binder) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.begun || b.holds[binder]
}

// published tells what is bound in a publication.
func (b *bindings) published(bound []*translate.Bound, publication uint64) {
	b.mu.Lock()
	present := make(map[translate.Binder]bool, len(bound))
	for _, one := range bound {
		binder := one.Binder()
		present[binder] = true
		_, waits := b.waiting[binder]
		switch {
		case !b.begun:
			b.holds[binder] = true
		case !waits && !b.holds[binder]:
			b.waiting[binder] = announced{publication, b.now()}
		}
	}
	for binder := range b.holds {
		if !present[binder] {
			delete(b.holds, binder)
		}
	}
	for binder := range b.waiting {
		if !present[binder] {
			delete(b.waiting, binder)
		}
	}
	b.begun = true
	wait := len(b.waiting) > 0
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
	settled := false
	for binder, one := range b.waiting {
		if b.acked(one.publication) || b.now().Sub(one.since) >= enforceAfter {
			delete(b.waiting, binder)
			b.holds[binder] = true
			settled = true
		}
	}
	b.mu.Unlock()
	if settled {
		b.changed()
	}
}
