package main

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/translate"
)

func boundService(name string) *translate.Bound {
	return &translate.Bound{Kind: "Service", Namespace: "shop", Name: name, Waypoint: types.NamespacedName{Namespace: "shop", Name: "waypoint"}}
}

func TestABindingIsEnforcedOnceEveryNodeHasHeardOfIt(t *testing.T) {
	acked, changed, settled, now := uint64(0), 0, 0, time.Unix(1000, 0)
	b := newBindings(func(p uint64) bool { return p <= acked }, func() { changed++ }, func() { settled++ })
	b.now = func() time.Time { return now }
	old, fresh := boundService("old"), boundService("fresh")

	if !b.enforced(old.Binder()) {
		t.Error("what is bound when the process begins is open in its first publication")
	}
	b.published([]*translate.Bound{old}, 1)
	if !b.enforced(old.Binder()) || b.enforced(fresh.Binder()) {
		t.Error("after the first publication: the old one is open, or one that is not bound is not")
	}

	b.published([]*translate.Bound{old, fresh}, 2)
	if b.enforced(fresh.Binder()) || changed != 0 {
		t.Error("enforced before any node acknowledged it")
	}
	b.published([]*translate.Bound{old, fresh}, 3) // something else has changed
	acked = 2
	b.check()
	if !b.enforced(fresh.Binder()) || changed != 1 {
		t.Errorf("not enforced although every node acknowledged it (told %d times)", changed)
	}
	if b.isInForce(fresh.Binder()) || !b.isInForce(old.Binder()) || settled != 1 {
		t.Errorf("in force before any node has heard that nobody else is let in (told %d times)", settled)
	}
	closed := boundService("fresh")
	closed.Enforced = true
	b.published([]*translate.Bound{old, closed}, 4)
	b.published([]*translate.Bound{old, closed}, 5)
	b.check()
	if b.isInForce(fresh.Binder()) {
		t.Error("in force before that is acknowledged")
	}
	acked = 4
	b.check()
	if !b.isInForce(fresh.Binder()) || settled != 2 || changed != 1 {
		t.Errorf("not in force although every node acknowledged that (told %d times, changed %d times)", settled, changed)
	}

	// Unbound, and bound again: once more from the beginning.
	b.published([]*translate.Bound{old}, 6)
	b.published([]*translate.Bound{old, fresh}, 7)
	if b.isInForce(fresh.Binder()) {
		t.Error("in force at once when it is bound again")
	}
	if b.enforced(fresh.Binder()) {
		t.Error("enforced at once when it is bound again")
	}
	now = now.Add(enforceAfter)
	b.check()
	if !b.enforced(fresh.Binder()) {
		t.Error("a node that does not answer keeps it open for ever")
	}
}

// A stream tells that a node answered while it holds its own lock, which whoever asks
// what has been acknowledged takes: the two may not meet.
func TestTellingOfAnswersNeverAsks(t *testing.T) {
	b := newBindings(func(uint64) bool { t.Error("asked"); return false }, func() {}, func() {})
	b.published(nil, 1)
	b.published([]*translate.Bound{boundService("a")}, 2)
	for range 3 {
		b.answered()
	}
}
