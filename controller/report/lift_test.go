package report

import (
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

// turns tells whether a pod may be published without its HBONE, after the loop had its turn.
func (w *world) turns() bool {
	time.Sleep(2 * releaseInterval)
	synctest.Wait()
	return w.registry.MayTurn("n1", uid)
}

func TestAPodTurnsOnceAllKnowThatItTakesPlaintext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		told := 0
		w.registry.OnObserved(func(types.NamespacedName) { told++ })
		w.lead()
		own, other := w.connect("n1"), w.connect("n2")
		w.beating(own, other)
		w.captured(own)
		step := func(title string, happens func(), want bool) {
			t.Helper()
			happens()
			if got := w.turns(); got != want {
				t.Fatalf("%s: it may turn: %v", title, got)
			}
			if got := w.releases(own); len(got) > 0 {
				t.Fatalf("%s: released %v", title, got)
			}
		}
		step("asked", func() { w.observe(own, reportapi.CaptureState_WITHDRAWING) }, false)
		if len(w.registry.Captured().Leaving()) > 0 {
			t.Error("it leaves before that is written")
		}
		step("a publication of before", func() { w.publish(2); w.ack(2) }, false)
		step("written", func() { w.registry.Remember(cart, uid, Remembered{HBONE: true, Leaving: true}) }, false)
		if v := w.registry.Captured(); !v.Has(uid) || !v.Leaving().Has(uid) {
			t.Errorf("published as %+v", v)
		}
		step("another pod leaves, and its node does not ask yet", func() { w.publishDisagreed(3, 1); w.ack(3) }, false)
		step("it does", func() { w.publish(4) }, false)
		step("one acknowledged", func() { w.ack(4, "n1") }, false)
		step("all acknowledged, and tell their kernels", func() { w.ack(4, "n2") }, false)
		before := told
		step("they had time for it", func() { time.Sleep(liftSettle) }, true)
		if told != before+1 {
			t.Errorf("told %d times", told-before)
		}
		w.registry.Remember(cart, uid, Remembered{Leaving: true})
		if v := w.registry.Captured(); v.Has(uid) || !v.Leaving().Has(uid) {
			t.Errorf("published as %+v", v)
		}
		w.publish(5)
		w.ack(5)
		if got := w.releases(own); len(got) != 1 {
			t.Errorf("released %v", got)
		}
		w.observe(own, reportapi.CaptureState_NOT_ENROLLED)
		w.registry.Remember(cart, uid, Remembered{})
		if len(w.registry.Captured().Leaving()) > 0 {
			t.Error("it leaves still")
		}
	})
}

// Who does not answer, and who does not ask, holds the others up for a time.
func TestAPodThatLeavesDoesNotWaitForEver(t *testing.T) {
	for name, c := range map[string]struct {
		disagreed int
		acks      []string
	}{
		"a node does not acknowledge": {0, []string{"n1"}},
		"a node does not ask":         {1, []string{"n1", "n2"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.lead()
				own, other := w.connect("n1"), w.connect("n2")
				w.beating(own, other)
				w.captured(own)
				w.observe(own, reportapi.CaptureState_WITHDRAWING)
				w.registry.Remember(cart, uid, Remembered{HBONE: true, Leaving: true})
				w.publishDisagreed(2, c.disagreed)
				w.ack(2, c.acks...)
				time.Sleep(liftPatience - time.Second)
				if w.turns() {
					t.Error("it turned early")
				}
				time.Sleep(time.Second)
				if !w.turns() {
					t.Error("it waits for ever")
				}
			})
		})
	}
}

// A label that is put back ends all that, and the next time it begins anew.
func TestALabelPutBackBeforeAPodTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		own := w.connect("n1")
		w.beating(own)
		w.captured(own)
		leave := func(publication uint64) {
			w.observe(own, reportapi.CaptureState_WITHDRAWING)
			w.registry.Remember(cart, uid, Remembered{HBONE: true, Leaving: true})
			w.publish(publication)
		}
		leave(2)
		w.ack(2)
		_ = w.turns()
		w.observe(own, reportapi.CaptureState_CAPTURED)
		w.registry.Remember(cart, uid, Remembered{HBONE: true})
		time.Sleep(liftSettle)
		if w.turns() {
			t.Error("it may turn although it is wanted again")
		}
		w.publish(3)
		leave(4)
		time.Sleep(liftSettle)
		if w.turns() {
			t.Error("it turns on old acknowledgements")
		}
		w.ack(4)
		_ = w.turns()
		time.Sleep(liftSettle)
		if !w.turns() {
			t.Error("it does not turn")
		}
	})
}
