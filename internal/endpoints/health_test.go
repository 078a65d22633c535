package endpoints

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestFailuresInARowEject(t *testing.T) {
	w := newWorld(t)
	w.fail(key(0), Threshold-1, keys(2))
	w.wantEjected(key(0), false)
	w.succeed(key(0))
	w.fail(key(0), Threshold-1, keys(2))
	w.wantEjected(key(0), false)
	w.fail(key(0), 1, keys(2))
	w.wantEjected(key(0), true)
	w.wantEjected(key(1), false)
	if _, ok := w.Connect(key(0), false); ok {
		t.Error("a connection was let through")
	}
	w.wantMetrics(`ambit_endpoint_ejections_total{reason="ConnectFailed"} 1`, `ambit_endpoints_ejected 1`)
	if !strings.Contains(w.log.String(), "endpoint ejected") {
		t.Errorf("log: %s", w.log.String())
	}
}

// After its time one connection tries the endpoint, and the others wait for its word.
func TestOneConnectionTriesIt(t *testing.T) {
	for _, established := range []bool{true, false} {
		t.Run(fmt.Sprint("established ", established), func(t *testing.T) {
			w := newWorld(t)
			w.fail(key(0), Threshold, keys(2))
			w.pass(baseEjection - 1)
			w.wantEjected(key(0), true)
			w.pass(1)
			w.wantEjected(key(0), false)
			probe := w.connect(key(0))
			w.wantEjected(key(0), true)
			if _, ok := w.Connect(key(0), false); ok {
				t.Error("a second one tries it at the same time")
			}
			if established {
				probe.Established()
				w.wantEjected(key(0), false)
				w.wantMetrics(`ambit_endpoints_ejected 0`)
				w.fail(key(0), Threshold-1, keys(2)) // trusted as if nothing had been
				w.wantEjected(key(0), false)
				probe.End()
				return
			}
			probe.Failed("TunnelFailed", keys(2)) // one failure is enough
			w.pass(2*baseEjection - 1)
			w.wantEjected(key(0), true)
			w.pass(1)
			w.wantEjected(key(0), false)
			w.wantMetrics(`ambit_endpoint_ejections_total{reason="TunnelFailed"} 1`)
		})
	}
}

// Who was about to try it and gave up leaves it to the next.
func TestAProbeWithoutAnOutcome(t *testing.T) {
	w := newWorld(t)
	w.fail(key(0), Threshold, keys(2))
	w.pass(baseEjection)
	w.connect(key(0)).End()
	w.wantEjected(key(0), false)
	w.succeed(key(0))
}

// Who asks over a connection that stands says of each request whether it was answered.
func TestRequestsThatAreNotAnswered(t *testing.T) {
	w := newWorld(t)
	kept := w.connect(key(0))
	kept.Established()
	for range Threshold - 1 {
		kept.Unanswered("UpstreamGone", keys(2))
	}
	kept.Established()
	for range Threshold - 1 {
		kept.Unanswered("UpstreamGone", keys(2))
	}
	w.wantEjected(key(0), false)
	kept.Unanswered("UpstreamGone", keys(2))
	w.wantEjected(key(0), true)
	w.wantMetrics(`ambit_endpoint_ejections_total{reason="UpstreamGone"} 1`)
	w.pass(baseEjection)
	// Whoever tries it has to have an answer: a connection that stays open without one keeps nobody from trying.
	undecided := w.connect(key(0))
	w.wantEjected(key(0), true)
	undecided.Undecided()
	w.wantEjected(key(0), false)
	probe := w.connect(key(0))
	w.wantEjected(key(0), true)
	probe.Unanswered("UpstreamGone", keys(2)) // one is enough
	w.pass(2*baseEjection - 1)
	w.wantEjected(key(0), true)
	w.pass(1)
	probe.Established()
	w.wantEjected(key(0), false)
	for _, l := range []*Lease{kept, undecided, probe} {
		l.End()
	}
}

// Of connections for requests, those count that are under way, and not connections that wait for one.
func TestRequestsAreTheLoadOfConnectionsForThem(t *testing.T) {
	w := newWorld(t)
	load := func(want int) {
		t.Helper()
		if got := w.Load(key(0).UID, key(0).Target); got != want {
			t.Fatalf("load %d, want %d", got, want)
		}
	}
	plain, one, two := w.connect(key(0)), w.connect(key(0)), w.connect(key(0))
	load(3) // whoever connects has something in mind
	one.ForRequests()
	two.ForRequests()
	load(1)
	first, second, third := one.Asked(), one.Asked(), two.Asked()
	load(4)
	first()
	load(3)
	one.End() // before its request is
	load(3)
	second()
	load(2)
	third()
	two.End()
	load(1)
	plain.End()
	load(0)
}

// Every ejection is longer than the one before, up to a bound, until the
// endpoint has been well for a while.
func TestEjectionsGrow(t *testing.T) {
	w := newWorld(t)
	w.fail(key(0), Threshold-1, keys(2))
	for n := 1; n < 15; n++ {
		w.fail(key(0), 1, keys(2))
		lasts := min(time.Duration(n)*baseEjection, maxEjection)
		w.pass(lasts - 1)
		w.wantEjected(key(0), true)
		w.pass(1)
		w.wantEjected(key(0), false)
	}
	w.succeed(key(0))
	w.pass(12 * baseEjection) // 12 of the 14 are forgotten
	w.fail(key(0), Threshold, keys(2))
	w.pass(3*baseEjection - 1)
	w.wantEjected(key(0), true)
	w.pass(1)
	w.wantEjected(key(0), false)
}

// What began before the ejection neither prolongs nor, if it failed, ends it.
func TestConnectionsThatWereUnderWay(t *testing.T) {
	w := newWorld(t)
	late, good := w.connect(key(0)), w.connect(key(0))
	w.fail(key(0), Threshold, keys(2))
	w.pass(baseEjection / 2)
	late.Failed("ConnectFailed", keys(2))
	w.pass(baseEjection / 2)
	w.wantEjected(key(0), false)
	w.connect(key(0)).Failed("ConnectFailed", keys(2))
	w.wantEjected(key(0), true)
	good.Established()
	w.wantEjected(key(0), false)
	good.End()
}

// Who has no other endpoint gets this one, and its success counts like any other.
func TestRegardlessOfEjection(t *testing.T) {
	w := newWorld(t)
	w.fail(key(0), Threshold, keys(2))
	for range 3 {
		l, ok := w.Connect(key(0), true)
		if !ok {
			t.Fatal("refused")
		}
		l.Failed("ConnectFailed", keys(2))
	}
	if all := w.Statuses(); all[0].Failures != Threshold || all[0].EjectedUntil == nil || !all[0].EjectedUntil.Equal(w.time.Add(baseEjection)) {
		t.Errorf("failures in a panic changed the ejection: %+v", all)
	}
	l, _ := w.Connect(key(0), true)
	l.Established()
	w.wantEjected(key(0), false)
	l.End()
}

func TestTheLastHalfIsNotEjected(t *testing.T) {
	for n, want := range map[int]int{1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 10: 5} {
		w := newWorld(t)
		for i := range n {
			w.fail(key(i), Threshold, keys(n))
		}
		w.wantMetrics(fmt.Sprintf("ambit_endpoints_ejected %d", want), fmt.Sprintf("ambit_endpoint_ejections_withheld_total %d", n-want))
	}
}

// One that waits to be tried again is none to rely on: it counts as ejected.
func TestOneToBeTriedTakesUpTheShare(t *testing.T) {
	w := newWorld(t)
	w.fail(key(0), Threshold, keys(2))
	w.pass(baseEjection)
	w.fail(key(1), Threshold, keys(2))
	w.wantEjected(key(1), false)
	w.succeed(key(0))
	w.fail(key(1), 1, keys(2))
	w.wantEjected(key(1), true)
}

// An endpoint that the service has no longer is no matter of its share.
func TestAnEndpointThatIsGoneIsNotEjected(t *testing.T) {
	w := newWorld(t)
	w.fail(key(7), Threshold, keys(4))
	w.wantEjected(key(7), false)
}
