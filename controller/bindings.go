package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/translate"
)

// stageAfter is how long a binding waits for nodes that do not acknowledge a stage, and
// for a waypoint that is not ready: their clients are refused from then on, until they
// have heard of it, and it is.
const stageAfter = 30 * time.Second

// grace is what connections get to end that were opened the other way: straight to what
// is bound, before others are kept away; and through the waypoint, before that does not
// know any more what it stands before.
const grace = 5 * time.Second

// bindings know how far each of them is, so that no new connection fails of one that
// comes or goes: a waypoint has to know what it is to stand before, and nodes whose word
// they have to take, before any client comes through it; and whoever goes straight to
// what is behind it is kept away only once no client does so any more. What is bound
// when the process begins may have been enforced by the one before, and is.
type bindings struct {
	// Fixed after newBindings.
	acked   func(publication uint64) bool                           // by every node
	held    func(waypoint types.NamespacedName, target string) bool // by every pod of it, one at least
	changed func()                                                  // one is at another stage
	settled func()                                                  // one is in force
	now     func() time.Time
	wake    chan struct{} // capacity 1

	mu sync.Mutex
	// Guarded by mu.
	begun    bool
	states   map[translate.Binder]*bindingState
	byTarget map[bindingTarget]translate.Binder
}

// bindingTarget is what is bound.
type bindingTarget struct{ kind, namespace, name string }

func targetOf(b translate.Binder) bindingTarget {
	return bindingTarget{b.Kind, b.Namespace, b.Name}
}

// bindingState is how far one is.
type bindingState struct {
	stage translate.Stage
	since time.Time
	// publication is the first one that has it at its stage; 0: none yet.
	publication uint64
	// inForce: it is enforced, and every node has heard of that.
	inForce bool
	// bound is what was published of it last.
	bound *translate.Bound
}

func newBindings(acked func(publication uint64) bool, held func(types.NamespacedName, string) bool, changed, settled func()) *bindings {
	return &bindings{
		acked: acked, held: held, changed: changed, settled: settled, now: time.Now, wake: make(chan struct{}, 1),
		states: make(map[translate.Binder]*bindingState), byTarget: make(map[bindingTarget]translate.Binder),
	}
}

// Stage is translate.Bindings'. Before the first publication all are enforced; and so is
// what changes from one waypoint to another, for it must not be open meanwhile.
func (b *bindings) Stage(binder translate.Binder) translate.Stage {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.states[binder]; s != nil {
		return s.stage
	}
	if _, changes := b.byTarget[targetOf(binder)]; changes || !b.begun {
		return translate.Enforced
	}
	return translate.Announced
}

// Leaving is translate.Bindings'.
func (b *bindings) Leaving(kind, namespace, name string) (translate.Binder, translate.Stage, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	binder, ok := b.byTarget[bindingTarget{kind, namespace, name}]
	if !ok {
		return translate.Binder{}, 0, false
	}
	return binder, b.states[binder].stage, true
}

// isInForce tells whether every node sends the clients of a binding to its waypoint,
// and lets in nobody else.
func (b *bindings) isInForce(binder translate.Binder) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.states[binder]
	return s != nil && s.inForce
}

// published tells what is bound in a publication.
func (b *bindings) published(bound []*translate.Bound, publication uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	present := make(map[translate.Binder]bool, len(bound))
	for _, one := range bound {
		if one.Stage == 0 {
			continue
		}
		binder := one.Binder()
		present[binder] = true
		s := b.states[binder]
		if s == nil {
			s = &bindingState{stage: one.Stage, since: b.now()}
			b.states[binder], b.byTarget[targetOf(binder)] = s, binder
		}
		s.bound = one
		if s.publication == 0 && s.stage == one.Stage {
			s.publication = publication
		}
	}
	maps.DeleteFunc(b.states, func(binder translate.Binder, _ *bindingState) bool { return !present[binder] })
	maps.DeleteFunc(b.byTarget, func(_ bindingTarget, binder translate.Binder) bool { return !present[binder] })
	b.begun = true
	for _, s := range b.states {
		if !s.inForce || s.bound.Leaving {
			b.answered() // who lacks nothing has acknowledged it
			return
		}
	}
}

// answered tells that nodes or waypoints may have come further. It never blocks.
func (b *bindings) answered() {
	select {
	case b.wake <- struct{}{}:
	default: // told already
	}
}

// run takes bindings on until ctx ends.
func (b *bindings) run(ctx context.Context) error {
	ticker := time.NewTicker(grace / 5)
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

// check takes every binding on that has come far enough.
func (b *bindings) check() {
	b.mu.Lock()
	known := make(map[uint64]bool)
	acked := func(publication uint64) bool {
		is, asked := known[publication]
		if !asked {
			is = b.acked(publication)
			known[publication] = is
		}
		return is
	}
	changed, settled := false, false
	for binder, s := range b.states {
		if s.publication == 0 || s.inForce && !s.bound.Leaving {
			continue
		}
		next, inForce := s.next(acked, b.held, b.now().Sub(s.since))
		switch {
		case next == 0:
			delete(b.states, binder)
			delete(b.byTarget, targetOf(binder))
			changed = true
		case next != s.stage:
			*s = bindingState{stage: next, since: b.now(), bound: s.bound}
			changed = true
		case inForce:
			s.inForce, settled = true, true
		}
	}
	b.mu.Unlock()
	if changed {
		b.changed()
	}
	if settled {
		b.settled()
	}
}

// next is the stage that the binding is to be at, zero for none, and whether it is in force.
// It has been at its stage for a time.
func (s *bindingState) next(acked func(uint64) bool, held func(types.NamespacedName, string) bool, at time.Duration) (next translate.Stage, inForce bool) {
	late := at >= stageAfter
	switch leaving := s.bound.Leaving; {
	case leaving && s.stage == translate.Enforced:
		return translate.Led, false
	case leaving && s.stage == translate.Announced && at < grace:
		return s.stage, false
	case leaving && (late || acked(s.publication)):
		return s.stage - 1, false
	case leaving:
		return s.stage, false
	case s.stage == translate.Announced && (late || s.bound.Problem != "" || s.bound.Ready && held(s.bound.Waypoint, s.bound.Target) && acked(s.publication)):
		return translate.Led, false
	case s.stage == translate.Led && at < grace:
		return s.stage, false
	case s.stage == translate.Led && (late || acked(s.publication)):
		return translate.Enforced, false
	}
	return s.stage, s.stage == translate.Enforced && acked(s.publication)
}

// heardByAll tells whether every node that has a ztunnel is connected, and none is
// behind: who is away may work with what was before, and nobody connected is not everybody.
func heardByAll(running []string, connected, behind []push.ProxyKey) bool {
	return len(behind) == 0 && !slices.ContainsFunc(running, func(node string) bool {
		return !slices.ContainsFunc(connected, func(p push.ProxyKey) bool { return p.Node == node })
	})
}
