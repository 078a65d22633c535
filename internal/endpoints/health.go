package endpoints

import (
	"sync/atomic"
	"time"
)

const (
	// Threshold is how many failures in a row eject an endpoint: what Envoy's
	// outlier detection takes. One or two happen to any pod that restarts.
	Threshold = 5
	// baseEjection times the number of ejections is how long one lasts, and
	// maxEjection is the longest; both as in Envoy. The time in which a pod
	// restarts, and the time after which nobody should wait for a look.
	baseEjection = 30 * time.Second
	maxEjection  = 300 * time.Second
	// maxEjectedShare of the endpoints that a connection could have gone to may
	// be ejected. Envoy's 10% is for answers that were bad, which say less than
	// connections that never were: half is one of two zones. Rounded down, it
	// leaves one of one, two of three.
	maxEjectedShare = 0.5
)

// endpoint is what is known of one. Guarded by Registry.mu, but for what is atomic.
type endpoint struct {
	// unwell: it has failures, or is distrusted. While it is not, a success changes nothing.
	unwell atomic.Bool
	// active connections, those being established too.
	active int
	// asked is what is to be added to that for the load: of connections for requests, it is the
	// requests that count.
	asked atomic.Int64
	// failures in a row, and when the last one was.
	failures int
	failedAt time.Time
	// distrusted: ejected, and not yet established to since.
	distrusted bool
	// until is when it may be, or might have been, tried again.
	until time.Time
	// ejections in good memory; see ejectLocked.
	ejections int
	// probe is the one connection that tries a distrusted endpoint.
	probe *Lease
}

// keptOut tells that e is not to be chosen: its time is not over, or somebody is
// trying it already.
func (e *endpoint) keptOut(now time.Time) bool {
	return e.distrusted && (now.Before(e.until) || e.probe != nil)
}

// forgettable tells that e is like an endpoint of which nothing is known.
func (e *endpoint) forgettable(now time.Time) bool {
	if e.failures == 0 && e.ejections == 0 {
		return true
	}
	last := e.failedAt
	if e.until.After(last) {
		last = e.until
	}
	return now.Sub(last) >= memory
}

func (e *endpoint) state(now time.Time) string {
	switch {
	case !e.distrusted:
		return "trusted"
	case e.probe != nil:
		return "being tried"
	case now.Before(e.until):
		return "ejected"
	}
	return "to be tried"
}

func (r *Registry) trustLocked(e *endpoint) {
	if e.distrusted {
		e.distrusted = false
		r.distrusted.Add(-1)
	}
}

// failedLocked counts a failure, and tells whether it is one too many.
func (r *Registry) failedLocked(l *Lease) (due bool) {
	e := l.endpoint
	now := r.now()
	if e.keptOut(now) && e.probe != l {
		return false // it began before the ejection, or in a panic
	}
	e.failures++
	e.failedAt = now
	e.unwell.Store(true)
	return e.failures >= Threshold
}

// eject leaves an endpoint alone, if its peers, of which it is one, allow it.
func (r *Registry) eject(l *Lease, reason string, peers []Key) {
	e := l.endpoint
	r.mu.Lock()
	now := r.now()
	if e.failures < Threshold || e.keptOut(now) && e.probe != l {
		r.mu.Unlock()
		return // meanwhile it was established to, or ejected by another one's failure
	}
	others, known := 0, false
	for _, k := range peers {
		if k == l.key {
			known = true
		} else if p := r.all[k]; p != nil && p.distrusted {
			others++
		}
	}
	if !known || float64(others+1) > maxEjectedShare*float64(len(peers)) {
		r.trustLocked(e)
		r.mu.Unlock()
		r.metrics.withheld.Inc()
		return
	}
	lasts := r.ejectLocked(e, now)
	times := e.ejections
	r.mu.Unlock()
	r.metrics.ejections.WithLabelValues(reason).Inc()
	r.logger.Info("endpoint ejected", "workload", l.key.UID, "target", l.key.Target, "reason", reason, "for", lasts, "times", times)
}

// ejectLocked returns how long the ejection lasts. Every baseEjection that the
// endpoint was in good standing takes one of the earlier ejections from the count.
func (r *Registry) ejectLocked(e *endpoint, now time.Time) time.Duration {
	if !e.distrusted {
		good := int(now.Sub(e.until) / baseEjection)
		e.ejections = max(0, e.ejections-good)
		e.distrusted = true
		r.distrusted.Add(1)
	}
	e.ejections++
	lasts := min(time.Duration(e.ejections)*baseEjection, maxEjection)
	e.until = now.Add(lasts)
	return lasts
}

// establishedLocked makes good for all failures. It tells whether that ended an
// ejection.
func (r *Registry) establishedLocked(l *Lease) (back bool) {
	e := l.endpoint
	back = e.distrusted
	e.failures = 0
	e.unwell.Store(false)
	if back {
		r.trustLocked(e)
		e.until = r.now() // good standing begins
	}
	return back
}
