package policy

import (
	"context"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// followed is how a live connection stands.
type followed struct {
	// workload that it was judged as one to, and by which version of its policies;
	// nil before it was judged at all.
	workload *workload.Workload
	version  workload.PolicyVersion
	// until it may go on although a policy is missing; zero if none is.
	until time.Time
}

// Follow cuts an established connection once it is no longer let in, which may be at
// once. Whoever established it forgets it when it is over.
func (e *Enforcer) Follow(c *conns.Conn) (forget func()) {
	uid := c.Destination.Workload.UID
	e.mu.Lock()
	if e.live[uid] == nil {
		e.live[uid] = map[*conns.Conn]followed{}
	}
	e.live[uid][c] = followed{}
	e.mu.Unlock()
	// From here on every later snapshot is looked at by Run, or has been published
	// by now. It was let in by this one or an earlier one.
	r := review{enforcer: e, snapshot: e.cfg.Snapshot(), now: time.Now()}
	if until := r.one(uid, c, followed{}); !until.IsZero() {
		e.wake()
	}
	return func() { e.forget(uid, c) }
}

func (e *Enforcer) forget(uid string, c *conns.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.live[uid], c)
	if len(e.live[uid]) == 0 {
		delete(e.live, uid)
	}
}

func (e *Enforcer) wake() {
	select {
	case e.again <- struct{}{}:
	default:
	}
}

// Run judges live connections whenever the snapshot has changed, until ctx ends.
func (e *Enforcer) Run(ctx context.Context) error {
	for {
		snapshot := e.cfg.Snapshot()
		e.metrics.retain(snapshot)
		var timer <-chan time.Time
		if next := e.reviewAll(snapshot); !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-snapshot.Changed():
		case <-e.again:
		case <-timer:
		}
	}
}

// reviewAll returns when the first connection will have waited long enough.
func (e *Enforcer) reviewAll(s *workload.Snapshot) (next time.Time) {
	type mine struct {
		conn *conns.Conn
		was  followed
	}
	e.mu.Lock()
	uids := make([]string, 0, len(e.live))
	for uid := range e.live {
		uids = append(uids, uid)
	}
	e.mu.Unlock()
	var due []mine
	for _, uid := range uids {
		due = due[:0]
		current, known := s.WorkloadByUID(uid)
		e.mu.Lock()
		for c, f := range e.live[uid] {
			w := f.workload // what is no longer published is not changed by that
			if known {
				w = current
			}
			if f.until.IsZero() && f.version == s.PolicyVersion(w) {
				continue
			}
			due = append(due, mine{c, f})
		}
		e.mu.Unlock()
		reviewing := review{enforcer: e, snapshot: s, now: time.Now()}
		for _, m := range due {
			until := reviewing.one(uid, m.conn, m.was)
			if !until.IsZero() && (next.IsZero() || until.Before(next)) {
				next = until
			}
		}
	}
	return next
}

// review is the connections of one workload, judged by one snapshot.
type review struct {
	enforcer *Enforcer
	snapshot *workload.Snapshot
	now      time.Time
	rules    rules // of the last workload
}

// one judges a connection, and returns until when it may wait for a policy.
func (r *review) one(uid string, c *conns.Conn, was followed) (until time.Time) {
	w, ok := published(r.snapshot, &c.Attempt)
	if !ok {
		// Its policies may have changed all the same.
		if w = was.workload; w == nil {
			w = c.Destination.Workload
		}
	}
	if r.rules.workload != w {
		r.rules = rulesFor(r.snapshot, w)
	}
	is := followed{workload: w, version: r.rules.version()}
	j := r.rules.judge(&c.Attempt)
	if j.missing() {
		if is.until = was.until; is.until.IsZero() {
			is.until = r.now.Add(holdTime)
		}
		if r.now.Before(is.until) {
			j.refusal = nil
		}
	}
	r.enforcer.note(uid, c, is)
	if j.refusal == nil {
		return is.until
	}
	r.enforcer.metrics.cut(j)
	why := "no longer admitted"
	if j.refusal.Reason == conns.WaypointBypassed {
		// It had until now to end: see docs/design/0005-waypoints.md.
		why += ", for it is older than the waypoint's binding"
	}
	c.Cut(j.refusal.Reason, fmt.Errorf("%s: %w", why, j.refusal.Err))
	return time.Time{}
}

// note how a connection stands, if it still lives.
func (e *Enforcer) note(uid string, c *conns.Conn, is followed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, live := e.live[uid][c]; live {
		e.live[uid][c] = is
	}
}
