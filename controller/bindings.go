package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// stageAfter is how long a binding waits for nodes that do not acknowledge a stage, and
// for a waypoint that is not ready: their clients are refused from then on, until they
// have heard of it, and it is.
const stageAfter = 30 * time.Second

// grace is what connections get to end that were opened the other way: straight to what
// is bound, before others are kept away; and through the waypoint, before that does not
// know any more what it stands before.
const grace = 5 * time.Second

// ackPatience is how long waypoints may take to acknowledge what is new, without being
// said not to be ready because of that.
const ackPatience = 5 * time.Second

// bindings know how far each of them is, so that no new connection fails of one that
// comes or goes: a waypoint has to know what it is to stand before, and nodes whose word
// they have to take, before any client comes through it; and whoever goes straight to
// what is behind it is kept away only once no client does so any more. From one waypoint
// to another it is the same, but that those two are the only ones let in meanwhile.
//
// How far they are is written down before it is published: the next leader goes on from
// there. What nothing is written of may have been enforced, and is. Only the leader takes
// them on.
type bindings struct {
	// Fixed after newBindings.
	record  bindingRecord
	logger  *slog.Logger
	acked   func(publication uint64) bool                           // by every node
	held    func(waypoint types.NamespacedName, target string) bool // by every pod of it, one at least
	changed func()                                                  // one is at another stage
	settled func()                                                  // one is in force, or ready, or is it no longer
	now     func() time.Time
	wake    chan struct{} // capacity 1

	written string // what the record says; owned by whoever leads

	mu sync.Mutex
	// Guarded by mu.
	leads  bool
	begun  bool // all that may have been enforced is in states
	news   bool // since the last look at who is ready
	states map[translate.Target]*bindingState
}

// bindingRecord outlives the leader.
type bindingRecord interface {
	// read returns what was written last; empty if nothing was.
	read(ctx context.Context) (string, error)
	write(ctx context.Context, text string) error
}

// bindingState is how far one is.
type bindingState struct {
	waypoint types.NamespacedName
	// from is the waypoint that it takes over from; empty if there is none.
	from  types.NamespacedName
	stage translate.Stage
	since time.Time
	// publication is the first one that has it at its stage; 0: none yet.
	publication uint64
	// inForce: it is enforced, and every node has heard of that.
	inForce bool
	// bound is what was published of it last, by the leader before maybe.
	bound *translate.Bound
	// ready is a reason of binding.ReadyCondition; empty: nobody knows yet. It is something
	// else by now since lacking, if that is not zero.
	ready   string
	lacking time.Time
}

func newBindings(record bindingRecord, logger *slog.Logger, acked func(publication uint64) bool, held func(types.NamespacedName, string) bool, changed, settled func()) *bindings {
	return &bindings{
		record: record, logger: logger,
		acked: acked, held: held, changed: changed, settled: settled, now: time.Now, wake: make(chan struct{}, 1),
		states: make(map[translate.Target]*bindingState),
	}
}

// takeOver goes on with what the leader before wrote down, and takes bindings on from
// here. What it cannot read is as if nothing were written.
func (b *bindings) takeOver(ctx context.Context) error {
	text, err := b.record.read(ctx)
	if err != nil {
		return fmt.Errorf("take bindings over: %w", err)
	}
	file, err := decodeBindings(text)
	if err != nil && text != "" {
		b.logger.Error("how far bindings are cannot be read: all are enforced at once", "error", err)
	}
	known := err == nil
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leads, b.begun, b.written = true, known && !file.Partial, text
	clear(b.states)
	for _, r := range file.Bindings {
		t := translate.Target{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
		b.states[t] = &bindingState{
			waypoint: parseName(r.Waypoint), from: parseName(r.From), stage: r.Stage, since: b.now(),
			bound: &translate.Bound{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Waypoint: parseName(r.Waypoint), Leaving: r.Leaving},
		}
	}
	return nil
}

// stop has bindings stay where they are: another process takes them on from now on.
func (b *bindings) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leads = false
}

// Standing is translate.Bindings'. What nobody knows of is enforced.
func (b *bindings) Standing(t translate.Target, waypoint types.NamespacedName) translate.Standing {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, labelled := b.states[t], waypoint.Name != ""
	switch {
	case s == nil && !labelled:
		return translate.Standing{}
	case s == nil && !b.begun:
		return translate.Standing{Waypoint: waypoint, Stage: translate.Enforced}
	case s == nil:
		return translate.Standing{Waypoint: waypoint, Stage: translate.Announced}
	}
	is := translate.Standing{Waypoint: s.waypoint, From: s.from, Stage: s.stage}
	if waypoint == s.waypoint {
		return is
	}
	switch takesOver := s.from.Name != ""; {
	case s.stage == translate.Announced && takesOver && (waypoint == s.from || !labelled):
		// Nobody has been led away from the one before.
		return translate.Standing{Waypoint: s.from, Stage: translate.Enforced, Leaving: !labelled}
	case !labelled:
		is.Leaving = true
		return is
	case s.stage == translate.Enforced:
		return translate.Standing{Waypoint: waypoint, From: s.waypoint, Stage: translate.Announced}
	case s.stage == translate.Announced && takesOver, s.stage == translate.Announced && !s.bound.Leaving:
		return translate.Standing{Waypoint: waypoint, From: s.from, Stage: translate.Announced}
	}
	// One after the other: clients are led to the one before, or were until just now.
	is.Leaving = s.stage == translate.Announced
	return is
}

// isInForce tells whether every node sends the clients of a binding to its waypoint,
// and lets in nobody else.
func (b *bindings) isInForce(one *translate.Bound) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.states[one.Of()]
	return s != nil && s.waypoint == one.Waypoint && s.inForce
}

// readiness is a reason of binding.ReadyCondition; empty if nobody knows yet.
func (b *bindings) readiness(one *translate.Bound) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.states[one.Of()]; s != nil && s.waypoint == one.Waypoint {
		return s.ready
	}
	return ""
}

// looks is called before Standing is asked for a publication; what it returns is to be
// told what is bound in that. A publication of before this process led counts for nothing.
func (b *bindings) looks() (published func(bound []*translate.Bound, publication uint64)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.leads {
		return func([]*translate.Bound, uint64) {}
	}
	return b.published
}

// published tells what is bound in a publication.
func (b *bindings) published(bound []*translate.Bound, publication uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	present := make(map[translate.Target]bool, len(bound))
	for _, one := range bound {
		if one.Stage == 0 {
			continue
		}
		present[one.Of()] = true
		s := b.states[one.Of()]
		if s == nil || s.waypoint != one.Waypoint {
			s = &bindingState{waypoint: one.Waypoint, from: one.From, stage: one.Stage, since: b.now()}
			b.states[one.Of()] = s
		}
		s.bound = one
		if s.publication == 0 && s.stage == one.Stage {
			s.publication = publication
		}
	}
	maps.DeleteFunc(b.states, func(t translate.Target, _ *bindingState) bool { return !present[t] })
	b.begun, b.news = true, true
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
			b.check(ctx)
			continue
		case <-ticker.C:
		}
		b.check(ctx)
		b.checkReady()
	}
}

// check takes every binding on that has come far enough.
func (b *bindings) check(ctx context.Context) {
	b.mu.Lock()
	b.news = true
	if !b.leads || !b.begun {
		b.mu.Unlock() // what may have been enforced must be in what is written
		return
	}
	forward := b.forwardLocked()
	text, err := b.recordLocked(forward)
	b.mu.Unlock()
	if err == nil && text != b.written {
		err = b.record.write(ctx, text)
	}
	if err != nil {
		if ctx.Err() == nil {
			b.logger.Error("bindings stay at their stage, which cannot be written down", "error", err)
		}
		return // tried again before long
	}
	b.written = text
	b.move(forward)
}

// forward is where a binding goes from its stage.
type forward struct {
	state   *bindingState
	next    translate.Stage // zero: it is none any more
	inForce bool
}

// forwardLocked finds those that have come far enough.
func (b *bindings) forwardLocked() map[translate.Target]forward {
	known := make(map[uint64]bool)
	acked := func(publication uint64) bool {
		is, asked := known[publication]
		if !asked {
			is = b.acked(publication)
			known[publication] = is
		}
		return is
	}
	all := make(map[translate.Target]forward)
	for t, s := range b.states {
		if s.publication == 0 || s.inForce && !s.bound.Leaving {
			continue
		}
		if next, inForce := s.next(acked, b.held, b.now().Sub(s.since)); next != s.stage || inForce {
			all[t] = forward{s, next, inForce}
		}
	}
	return all
}

// recordLocked is what is to be written down before those that go forward do.
func (b *bindings) recordLocked(all map[translate.Target]forward) (string, error) {
	recorded := make([]recordedBinding, 0, len(b.states))
	for t, s := range b.states {
		r := recordedBinding{
			Kind: t.Kind, Namespace: t.Namespace, Name: t.Name,
			Waypoint: formatName(s.waypoint), From: formatName(s.from), Stage: s.stage, Leaving: s.bound.Leaving,
		}
		if f, ok := all[t]; ok {
			if f.next == 0 {
				continue
			}
			if r.Stage = f.next; f.next == translate.Enforced {
				r.From = ""
			}
		}
		recorded = append(recorded, r)
	}
	return encodeBindings(recorded, maxBindingsBytes)
}

// move has those go forward that are still as they were.
func (b *bindings) move(all map[translate.Target]forward) {
	changed, settled := false, false
	b.mu.Lock()
	for t, f := range all {
		s := f.state
		if b.states[t] != s {
			continue // a publication made another one of it meanwhile
		}
		switch {
		case f.next == 0:
			delete(b.states, t)
			changed = true
		case f.next != s.stage:
			s.stage, s.since, s.publication, s.inForce = f.next, b.now(), 0, false
			if f.next == translate.Enforced {
				s.from = types.NamespacedName{}
			}
			changed = true
		case f.inForce:
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
	// What takes over from another waypoint does so first.
	switch leaving := s.bound.Leaving && s.from.Name == ""; {
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

// checkReady looks at whose waypoint can do its part, if that may have changed.
func (b *bindings) checkReady() {
	b.mu.Lock()
	if !b.news || !b.leads {
		b.mu.Unlock()
		return
	}
	b.news = false
	changed := false
	for _, s := range b.states {
		if s.bound.Stage == 0 {
			continue // not published by this process yet
		}
		now := binding.Ready
		switch {
		case s.bound.Problem != "":
			now = s.bound.Reason
		case !s.bound.Ready:
			now = binding.NotReady
		case !b.held(s.waypoint, s.bound.Target):
			now = binding.NotAcknowledged
		}
		if now == s.ready {
			s.lacking = time.Time{}
			continue
		}
		if now == binding.NotAcknowledged {
			if s.lacking.IsZero() {
				s.lacking = b.now()
			}
			if b.now().Sub(s.lacking) < ackPatience {
				b.news = true // time will tell
				continue
			}
		}
		s.ready, s.lacking, changed = now, time.Time{}, true
	}
	b.mu.Unlock()
	if changed {
		b.settled()
	}
}

// heardByAll tells whether every node that has a ztunnel is connected, and none is
// behind: who is away may work with what was before, and nobody connected is not everybody.
func heardByAll(running []string, connected, behind []push.ProxyKey) bool {
	return len(behind) == 0 && !slices.ContainsFunc(running, func(node string) bool {
		return !slices.ContainsFunc(connected, func(p push.ProxyKey) bool { return p.Node == node })
	})
}
