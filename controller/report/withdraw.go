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
	// generation of the captured set without the pod; nil until it is written.
	generation *uint64
	// publication that has to be acknowledged; nil until it is made.
	publication *uint64
	// released: the Release is on the node's stream.
	released   bool
	complained time.Time
}

// release sends a Release for every pod that no node tunnels to any more.
func (r *Registry) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pendingLocked() == 0 {
		return
	}
	connected := r.cfg.Acks.Connected()
	for name, n := range r.nodes {
		for uid, w := range n.withdrawals {
			if w.released {
				continue
			}
			if reason := r.waitsForLocked(uid, w, connected); reason != "" {
				r.complainLocked(name, uid, w, reason)
				continue
			}
			if n.session == nil {
				// It asks again when it is back.
				continue
			}
			w.released = true
			n.session.release(uid)
			r.cfg.Logger.Info("released pod", "namespace", w.pod.Namespace, "pod", w.pod.Name, "uid", uid, "node", name,
				"publication", *w.publication, "duration", r.cfg.Now().Sub(w.since))
		}
	}
}

// waitsForLocked says what a withdrawal waits for, empty for nothing.
func (r *Registry) waitsForLocked(uid types.UID, w *withdrawal, connected []string) string {
	m, known := r.memories[uid]
	if !known || !m.settled || m.hbone {
		// The pod may have been captured again meanwhile: begin anew.
		w.generation, w.publication = nil, nil
		return "its Workload object is not written yet"
	}
	if w.generation == nil {
		generation := r.generation
		w.generation = &generation
	}
	if w.publication == nil {
		if r.published == nil || r.published.generation < *w.generation {
			return "the mesh without it is not published yet"
		}
		publication := r.published.publication
		w.publication = &publication
	}
	if behind := r.cfg.Acks.Behind(*w.publication); len(behind) > 0 {
		return fmt.Sprintf("publication %d is not acknowledged by %s", *w.publication, list(behind))
	}
	if away := r.awayLocked(connected); len(away) > 0 {
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
