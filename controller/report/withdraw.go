package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// releaseInterval is how often withdrawals are looked at: what a person who
	// removes a label waits at most beyond the nodes' own time.
	releaseInterval = 100 * time.Millisecond
	// complainInterval is how often it is logged what a withdrawal waits for.
	complainInterval = 10 * time.Second
	// recentHeartbeat: a node heard of since then may be back any moment with
	// the configuration that it had.
	recentHeartbeat = 60 * time.Second
)

// withdrawal is a pod that its node asks to let go; guarded by Registry.mu.
type withdrawal struct {
	pod   types.NamespacedName
	since time.Time
	// asked is the node's own time of its request, which the Release repeats.
	asked time.Time
	// lift is that the pod takes plaintext besides tunnels, which was first heard by all
	// nodes at heard, if that is not zero; mayTurn: it need be reached by tunnels no longer.
	lift    step
	heard   time.Time
	mayTurn bool
	// without is the captured set without the pod.
	without step
	// released: the Release is on the node's stream.
	released   bool
	complained time.Time
}

// acknowledged is what push said at one moment.
type acknowledged struct {
	connected []string
	// behind by publication.
	behind map[uint64][]string
}

// release takes withdrawals on: it lets pods turn to plaintext, and sends a Release
// for every pod that no node tunnels to any more. Push
// is asked without the lock held: it may be about to tell of a publication.
func (r *Registry) release() {
	publications, pending := r.awaited()
	if !pending {
		return
	}
	acks := r.askAcks(publications)
	for _, pod := range r.turn(acks) {
		if r.onObserved != nil {
			r.onObserved(pod)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, n := range r.nodes {
		for uid, w := range n.withdrawals {
			if w.released {
				continue
			}
			if reason := r.waitsForLocked(uid, w, acks); reason != "" {
				r.complainLocked(name, uid, w, reason)
				continue
			}
			if n.session == nil {
				// It asks again when it is back.
				continue
			}
			w.released = true
			n.session.release(uid, w.asked)
			r.cfg.Logger.Info("released pod", "namespace", w.pod.Namespace, "pod", w.pod.Name, "uid", uid, "node", name,
				"publication", *w.without.publication, "duration", r.cfg.Now().Sub(w.since))
		}
	}
}

// askAcks counts as connected who was so before and after: a stream that came
// or went meanwhile may be missing among those behind.
func (r *Registry) askAcks(publications []uint64) acknowledged {
	before := r.cfg.Acks.Connected()
	acks := acknowledged{behind: map[uint64][]string{}}
	for _, publication := range publications {
		acks.behind[publication] = r.cfg.Acks.Behind(publication)
	}
	for _, name := range r.cfg.Acks.Connected() {
		if slices.Contains(before, name) {
			acks.connected = append(acks.connected, name)
		}
	}
	return acks
}

// awaited moves every withdrawal on as far as it goes without push, and returns
// the publications whose acknowledgement is needed.
func (r *Registry) awaited() (publications []uint64, pending bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes {
		for uid, w := range n.withdrawals {
			if w.released {
				continue
			}
			pending = true
			r.advanceLocked(uid, w)
			for _, s := range []step{w.lift, w.without} {
				if s.publication != nil && !slices.Contains(publications, *s.publication) {
					publications = append(publications, *s.publication)
				}
			}
		}
	}
	return publications, pending
}

// advanceLocked finds the publications that a withdrawal has to wait for, once
// it is written down that the pod leaves, and that it is out of the captured set, and
// not before. All that leave at once take plaintext in the first of them.
func (r *Registry) advanceLocked(uid types.UID, w *withdrawal) {
	m, known := r.memories[uid]
	written := known && m.settled && !m.deciding
	if written && m.Leaving && (r.published == nil || r.published.Disagreed == 0) {
		w.lift.advance(r.generation, r.published)
	}
	if !written || m.HBONE {
		// The pod may have been captured again meanwhile: begin anew.
		w.without = step{}
		return
	}
	w.without.advance(r.generation, r.published)
}

// waitsForLocked says what a withdrawal waits for, empty for nothing.
func (r *Registry) waitsForLocked(uid types.UID, w *withdrawal, acks acknowledged) string {
	r.advanceLocked(uid, w)
	switch {
	case w.without.generation == nil:
		return "its Workload object is not written yet"
	case w.without.publication == nil:
		return "the mesh without it is not published yet"
	}
	return r.unheardLocked(*w.without.publication, acks)
}

// unheardLocked says who may not have heard of a publication, empty for nobody.
func (r *Registry) unheardLocked(publication uint64, acks acknowledged) string {
	behind, asked := acks.behind[publication]
	switch {
	case !asked:
		return "its publication was not asked about yet"
	case len(behind) > 0:
		return fmt.Sprintf("publication %d is not acknowledged by %s", publication, list(behind))
	}
	if away := r.awayLocked(acks.connected); len(away) > 0 {
		return "no configuration stream from " + list(away)
	}
	return ""
}

// awayLocked returns the known nodes without a configuration stream whose
// ztunnel may still act on what it had.
func (r *Registry) awayLocked(connected []string) (away []string) {
	now := r.cfg.Now()
	for name, n := range r.nodes {
		if n.heartbeat.IsZero() || slices.Contains(connected, name) {
			continue
		}
		if now.Sub(n.heartbeat) < recentHeartbeat || r.cfg.Tunnels.MayRun(name) {
			away = append(away, name)
		}
	}
	return away
}

func (r *Registry) complainLocked(nodeName string, uid types.UID, w *withdrawal, reason string) {
	now := r.cfg.Now()
	if now.Sub(w.since) < complainInterval || now.Sub(w.complained) < complainInterval {
		return
	}
	w.complained = now
	r.cfg.Logger.Warn("withdrawal waits", "namespace", w.pod.Namespace, "pod", w.pod.Name, "uid", uid, "node", nodeName,
		"reason", reason, "since", w.since)
}

func (r *Registry) pendingLocked() (pending int) {
	for _, n := range r.nodes {
		for _, w := range n.withdrawals {
			if !w.released {
				pending++
			}
		}
	}
	return pending
}

// list writes node names for a person, the first few of many.
func list(names []string) string {
	const enough = 5
	names = slices.Sorted(slices.Values(names))
	if len(names) > enough {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:enough], ", "), len(names)-enough)
	}
	return strings.Join(names, ", ")
}
