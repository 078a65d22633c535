package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/conns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
)

// lateGrace is how long the live connections of a pod wait for a policy that has
// not come, which is as long as new ones do.
const lateGrace = 2 * time.Second

// leaving is what was last done about a pod's way out of the mesh.
type leaving struct {
	rules egress.Rules
	// late is when the policies that are missing were first missed; zero if none are.
	late time.Time
	// told: rules were acted upon, missing ones too.
	told bool
}

// followEgress cuts what may no longer leave, as policies change, until the context ends.
func (d *dataplane) followEgress(ctx context.Context) error {
	for {
		snapshot := d.store.Snapshot()
		again := time.Duration(math.MaxInt64)
		for _, c := range d.captured() {
			if wait := c.followEgress(snapshot); wait > 0 {
				again = min(again, wait)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-snapshot.Changed():
		case <-d.startedEgress:
		case <-time.After(again):
		}
	}
}

// followEgress returns when it wants to be called again at the latest; zero if nothing is to be waited for.
func (c *capture) followEgress(snapshot *workload.Snapshot) (wait time.Duration) {
	rules := c.egress.Rules(snapshot)
	l := &c.leaving
	if l.told && rules.Equal(l.rules) {
		return 0
	}
	if len(rules.Missing) == 0 {
		l.late = time.Time{}
	} else if l.late.IsZero() {
		l.late = time.Now()
	}
	if left := lateGrace - time.Since(l.late); len(rules.Missing) > 0 && left > 0 {
		l.told = false
		return left
	}
	l.rules, l.told = rules, true
	for _, conn := range c.dataplane.conns.Live() {
		if !conn.Outside() || conn.Source.Workload == nil || conn.Source.Workload.UID != c.uid {
			continue
		}
		flow := c.egress.Flow(conn.Destination.Addr, conn.Names)
		if decision := rules.Decide(flow); decision.Outcome != egress.Allowed {
			reason := conns.EgressDenied
			if decision.Outcome == egress.Unknown {
				reason = conns.EgressUnknown
			}
			conn.Cut(reason, fmt.Errorf("policy changed: %w", decision.Error(flow)))
		}
	}
	return 0
}
