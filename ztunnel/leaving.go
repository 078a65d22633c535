package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
)

const (
	// lateGrace is how long the live connections of a pod wait for a policy that
	// has not come, which is as long as new ones do.
	lateGrace = 2 * time.Second
	// leavingRetry is how soon the kernel is told again what it did not take.
	leavingRetry = time.Second
)

// leaving is what was last done about a pod's way out of the mesh.
type leaving struct {
	// Owned by followEgress.
	judged egress.Rules // that live connections were judged by
	done   bool         // and that was all of them
	late   time.Time    // when the policies that are missing were first missed; zero if none are

	mu sync.Mutex
	// Guarded by mu.
	told    egress.Rules // that the kernel goes by
	begun   bool         // and there are any
	known   bool         // and it took them
	allowed [2]allowed   // by bpf.Table
	swept   time.Time
}

// startsDenied tells whether a pod's way out is denied from its first moment: as startsStrict.
func (d *dataplane) startsDenied(target pods.Target, own *workload.Workload) bool {
	if target.Serving {
		return false
	}
	snapshot := d.store.Snapshot()
	if rules := egress.Of(snapshot, own); rules.Restrict() {
		return true
	}
	_, known := snapshot.WorkloadByUID(own.UID)
	return !known && !d.synced()
}

// followEgress has the kernel and the live connections do what policies say, as they change, until the context ends.
func (d *dataplane) followEgress(ctx context.Context) error {
	for {
		snapshot := d.store.Snapshot()
		again := time.Duration(math.MaxInt64)
		for _, c := range d.captured() {
			rules := c.egress.Rules(snapshot)
			for _, wait := range []time.Duration{c.tell(snapshot, rules), c.judge(rules)} {
				if wait > 0 {
					again = min(again, wait)
				}
			}
		}
		if wait := d.countDue(); wait > 0 {
			again = min(again, wait)
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

// judge cuts the live connections that may no longer leave. It returns when it wants to be called again at the latest; zero if
// nothing is to be waited for.
func (c *capture) judge(rules egress.Rules) (wait time.Duration) {
	l := &c.leaving
	if l.done && rules.Equal(l.judged) {
		return 0
	}
	if len(rules.Missing) == 0 {
		l.late = time.Time{}
	} else if l.late.IsZero() {
		l.late = time.Now()
	}
	if left := lateGrace - time.Since(l.late); len(rules.Missing) > 0 && left > 0 {
		l.done = false
		return left
	}
	l.judged, l.done = rules, true
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

// tell has the kernel go by the rules. What a pod may do that nobody has told of yet is what it might do before.
func (c *capture) tell(snapshot *workload.Snapshot, rules egress.Rules) (wait time.Duration) {
	if _, known := snapshot.WorkloadByUID(c.uid); !known && !c.dataplane.synced() || c.dataplane.ceded.Load() {
		return 0 // until the snapshot changes
	}
	l := &c.leaving
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known && rules.Equal(l.told) {
		return c.sweepLocked()
	}
	again := rules.Equal(l.told)
	err := c.tellLocked(rules)
	if l.known = err == nil; l.known {
		return c.sweepLocked()
	}
	if !again {
		c.logger.Error("guard on a pod's way out not as it ought to be", "denied", rules.Restrict(), "error", err)
	}
	return leavingRetry
}

func (c *capture) tellLocked(rules egress.Rules) error {
	l := &c.leaving
	var errs []error
	tries := len(rules.Trial()) > 0
	if !tries {
		errs = append(errs, c.redirect.SetTried(false))
	}
	// What was counted up to now was by the rules of before; by those of now, if another process knew them.
	if !l.begun {
		l.told, l.begun = rules, true
	}
	c.countTriedLocked()
	l.told = rules
	l.allowed[bpf.InForce].rules, l.allowed[bpf.OnTrial].rules = rules, egress.Rules{}
	if tries {
		l.allowed[bpf.OnTrial].rules = rules.Tried()
	}
	// First, so that what is allowed may fail.
	errs = append(errs, c.redirect.SetEgress(rules.Restrict()))
	for _, by := range []bpf.Table{bpf.InForce, bpf.OnTrial} {
		errs = append(errs, c.redirect.AllowRanges(by, ranges(l.allowed[by].rules.Static())), c.allowNamesLocked(by))
	}
	if tries {
		errs = append(errs, c.redirect.SetTried(true)) // last: what is allowed is not counted
	}
	return errors.Join(errs...)
}

// dumpedEgress is what decides on the way out of a captured pod whose way out is denied, or of which names are known.
type dumpedEgress struct {
	Pod    string `json:"pod"`
	Denied bool   `json:"denied"` // as the kernel has it
	// Policies that deny, or do so on trial, and those that have not come.
	Policies []string `json:"policies,omitempty"`
	Trial    []string `json:"policies_on_trial,omitempty"`
	Missing  []string `json:"policies_missing,omitempty"`
	// Names with their addresses.
	Names map[string][]string `json:"names,omitempty"`
}

func (d *dataplane) dumpEgress() any {
	all := []dumpedEgress{}
	snapshot := d.store.Snapshot()
	for _, c := range d.captured() {
		rules := c.egress.Rules(snapshot)
		e := dumpedEgress{Pod: c.uid, Policies: rules.Denying(), Trial: rules.Trial(), Missing: rules.Missing, Names: map[string][]string{}}
		e.Denied, _ = c.redirect.EgressDenied()
		for _, learnt := range c.egress.Names.All() {
			e.Names[learnt.Name] = append(e.Names[learnt.Name], learnt.IP.String())
		}
		for _, addresses := range e.Names {
			slices.Sort(addresses)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b dumpedEgress) int { return strings.Compare(a.Pod, b.Pod) })
	return all
}
