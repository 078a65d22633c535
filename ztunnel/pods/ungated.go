package pods

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// The gate stands in a file that others can overwrite. If they do, and the node
// loses its power before the file is restored, it boots without the gate, and
// what is enrolled starts uncaptured. That cannot be prevented from here; it can
// be told which pods ran so, and from when to when.

// ungated is how long an enrolled pod ran in its sandbox before it was captured.
type ungated struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

// noteEnrolled remembers since when namespaces are enrolled.
func (p *Pods) noteEnrolled(enrolment cniproto.Enrolment) {
	since := make(map[string]time.Time)
	for name, namespace := range enrolment.Namespaces {
		if namespace.Mode == cniproto.ModeAmbient && !namespace.Since.IsZero() {
			since[name] = namespace.Since
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enrolledSince = since
}

// startedUngatedLocked tells whether a pod that is captured now was enrolled
// when its sandbox was made, and passed no gate: it was not let start by this
// process, nor captured by the one before. What was only labelled later, and
// what the gate lets through on purpose, has not.
func (w *worker) startedUngatedLocked(f facts, sandbox Sandbox, pinned bool, now time.Time) *ungated {
	if pinned || sandbox.Created.IsZero() || w.pods.neverHeld(f.namespace) {
		return nil
	}
	since, enrolled := w.pods.enrolledSince[f.namespace]
	if !f.moved && (!enrolled || !sandbox.Created.After(since.Add(createdSlack))) {
		return nil
	}
	return &ungated{From: sandbox.Created.UTC().Truncate(time.Millisecond), Until: now.UTC().Truncate(time.Millisecond)}
}

// maxUngated bounds how many are named: after a boot without the gate it may be
// all of a node.
const maxUngated = 5

// ungatedLocked tells which pods that live now ran uncaptured.
func (p *Pods) ungatedLocked() []string {
	var all []*worker
	for _, w := range p.workers {
		if w.ungated != nil && w.running != nil {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b *worker) int {
		return cmp.Or(a.ungated.From.Compare(b.ungated.From), cmp.Compare(a.uid, b.uid))
	})
	var problems []string
	for i, w := range all {
		if i == maxUngated {
			problems = append(problems, fmt.Sprintf("%s: and %d more pods of this node", cniproto.StartedUngated, len(all)-i))
			break
		}
		problems = append(problems, fmt.Sprintf("%s: pod %s/%s ran uncaptured from %s to %s: it was enrolled, and no gate was in the node's CNI chain when it started",
			cniproto.StartedUngated, w.facts.namespace, w.facts.name, w.ungated.From.Format(time.RFC3339), w.ungated.Until.Format(time.RFC3339)))
	}
	return problems
}
