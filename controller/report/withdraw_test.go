package report

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

func TestWithdrawalInItsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		own, other := w.connect("n1"), w.connect("n2")
		w.beating(own, other)
		w.captured(own)

		step := func(title string, happens func(), want ...types.UID) {
			t.Helper()
			happens()
			if got := w.releases(own); !slices.Equal(got, want) {
				t.Fatalf("%s: released %v, want %v", title, got, want)
			}
			if got := w.registry.due(other); len(got) > 0 {
				t.Fatalf("%s: another node was told %v", title, got)
			}
		}
		step("asked", func() { w.observe(own, reportapi.CaptureState_WITHDRAWING) })
		if !w.registry.Captured().Has(uid) {
			t.Error("no longer HBONE before that was written")
		}
		step("a publication of before", func() { w.publish(2); w.ack(2) })
		step("written", func() { w.registry.Remember(cart, uid, Remembered{}) })
		step("all acknowledged the one before", func() { w.ack(2) })
		step("published", func() { w.publish(3) })
		step("one acknowledged", func() { w.ack(3, "n1") })
		step("all acknowledged", func() { w.ack(3, "n2") }, uid)
		step("nothing more", func() { w.publish(4) })
		step("the node asks again, the release was lost", func() {
			own = w.connect("n1")
			w.observe(own, reportapi.CaptureState_WITHDRAWING)
		}, uid)
		step("let go", func() { w.observe(own, reportapi.CaptureState_NOT_ENROLLED) })
		if w.registry.pendingLocked() != 0 {
			t.Error("something is left")
		}
	})
}

func TestLaterPublicationsDoNotDelayARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		own, busy := w.connect("n1"), w.connect("n2")
		w.beating(own, busy)
		w.captured(own)
		w.observe(own, reportapi.CaptureState_WITHDRAWING)
		w.registry.Remember(cart, uid, Remembered{})
		w.publish(5)
		_ = w.releases(own)
		// n2 is always one behind in a mesh that changes all the time.
		w.publish(6)
		w.ack(6, "n1")
		w.ack(5, "n2")
		if got := w.releases(own); !slices.Equal(got, []types.UID{uid}) {
			t.Errorf("released %v", got)
		}
	})
}

func TestLabelPutBackDuringWithdrawal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		own := w.connect("n1")
		w.beating(own)
		w.captured(own)
		w.observe(own, reportapi.CaptureState_WITHDRAWING)
		w.registry.Remember(cart, uid, Remembered{})
		w.publish(2)
		w.observe(own, reportapi.CaptureState_CAPTURED)
		w.ack(2)
		if got := w.releases(own); len(got) > 0 {
			t.Errorf("released %v although it is wanted again", got)
		}
		w.registry.Remember(cart, uid, Remembered{HBONE: true})
		if !w.registry.Captured().Has(uid) {
			t.Error("not HBONE again")
		}
		// And once more: the acknowledgements of the first time do not count.
		w.observe(own, reportapi.CaptureState_WITHDRAWING)
		w.publish(3)
		w.ack(3)
		if got := w.releases(own); len(got) > 0 {
			t.Error("released on old acknowledgements")
		}
		w.registry.Remember(cart, uid, Remembered{})
		w.publish(4)
		w.ack(4)
		if got := w.releases(own); !slices.Equal(got, []types.UID{uid}) {
			t.Errorf("released %v", got)
		}
	})
}

func TestNoReleaseWhileTheProtocolIsBeingDecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		own := w.connect("n1")
		w.beating(own)
		w.registry.Remember(cart, uid, Remembered{})
		w.publish(1)
		w.ack(1)
		// Somebody decided on CAPTURED and is about to write HBONE.
		w.registry.Decide(uid)
		w.observe(own, reportapi.CaptureState_WITHDRAWING)
		if got := w.releases(own); len(got) > 0 {
			t.Errorf("released %v in the middle of a decision", got)
		}
		w.registry.Remember(cart, uid, Remembered{})
		if got := w.releases(own); !slices.Equal(got, []types.UID{uid}) {
			t.Errorf("released %v", got)
		}
	})
}

func TestReleaseQueuedButOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		own := w.connect("n1")
		w.beating(own)
		w.registry.Remember(cart, uid, Remembered{})
		w.publish(1)
		w.ack(1)
		w.observe(own, reportapi.CaptureState_WITHDRAWING)
		time.Sleep(2 * releaseInterval)
		w.observe(own, reportapi.CaptureState_CAPTURED)
		if got := w.registry.due(own); len(got) > 0 {
			t.Errorf("sent %v although it is wanted again", got)
		}
	})
}

// withdrawn brings a pod to where only other nodes can hold it back.
func withdrawn(w *world, own *session) {
	w.captured(own)
	w.observe(own, reportapi.CaptureState_WITHDRAWING)
	w.registry.Remember(cart, uid, Remembered{})
	w.publish(2)
	w.ack(2, "n1")
}

func TestDisconnectedNodeHoldsBack(t *testing.T) {
	for title, c := range map[string]struct {
		mayRun   bool
		released time.Duration // 0: never
	}{
		"its ztunnel may still run":     {mayRun: true},
		"it lost its power, or is gone": {mayRun: false, released: recentHeartbeat},
	} {
		t.Run(title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.lead()
				own, away := w.connect("n1"), w.connect("n2")
				w.beating(own)
				if c.mayRun {
					w.tunnels.mayRun.Store(true)
				}
				w.disconnect(away)
				withdrawn(w, own)
				time.Sleep(recentHeartbeat - 10*time.Second)
				if got := w.releases(own); len(got) > 0 {
					t.Fatalf("released %v while n2 was heard of a moment ago", got)
				}
				time.Sleep(20 * time.Second)
				if got := w.releases(own); (len(got) > 0) != (c.released > 0) {
					t.Fatalf("released %v", got)
				}
				if c.released > 0 {
					return
				}
				// Back, but not up to date; then up to date.
				w.connect("n2")
				if got := w.releases(own); len(got) > 0 {
					t.Fatalf("released %v to a node with the old configuration", got)
				}
				w.ack(2, "n2")
				if got := w.releases(own); !slices.Equal(got, []types.UID{uid}) {
					t.Fatalf("released %v", got)
				}
			})
		})
	}
}

func TestNodesOfAnEarlierLeaderHoldBackToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.lead()
		w.connect("n2")
		time.Sleep(leaseInterval + time.Second)
		stop()

		w.acks.disconnect("n2")
		w.tunnels.mayRun.Store(true)
		w.start()
		w.lead()
		own := w.connect("n1")
		w.beating(own)
		w.registry.Seed(cart, uid, Remembered{})
		w.observe(own, reportapi.CaptureState_WITHDRAWING)
		w.registry.Remember(cart, uid, Remembered{})
		w.publish(1)
		w.ack(1, "n1")
		if got := w.releases(own); len(got) > 0 {
			t.Errorf("released %v: n2 is known from its lease and was not asked", got)
		}
		w.connect("n2")
		w.ack(1, "n2")
		if got := w.releases(own); !slices.Equal(got, []types.UID{uid}) {
			t.Errorf("released %v", got)
		}
	})
}

func TestItIsSaidWhatAWithdrawalWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var log bytes.Buffer
		w.registry.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		w.lead()
		own, slow := w.connect("n1"), w.connect("n2")
		w.beating(own, slow)
		withdrawn(w, own)
		time.Sleep(35 * time.Second)
		synctest.Wait()
		if got := strings.Count(log.String(), "withdrawal waits"); got != 3 {
			t.Errorf("said %d times in 35 s:\n%s", got, log.String())
		}
		if !strings.Contains(log.String(), "publication 2 is not acknowledged by n2") {
			t.Errorf("not said why:\n%s", log.String())
		}
	})
}

func TestForgottenPodIsNotReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		own := w.connect("n1")
		w.beating(own)
		withdrawn(w, own)
		w.registry.Forget(uid)
		if got := w.releases(own); len(got) > 0 || w.registry.pendingLocked() != 0 {
			t.Errorf("released %v", got)
		}
	})
}
