package report

import (
	"maps"

	"k8s.io/apimachinery/pkg/types"
)

// CapturedView is the set of pods published as HBONE at one moment. Immutable.
type CapturedView struct {
	uids       map[types.UID]struct{}
	generation uint64
}

// Has says whether a pod is published as HBONE.
func (v CapturedView) Has(uid types.UID) bool {
	_, ok := v.uids[uid]
	return ok
}

// Generation counts the changes of the set. Whoever publishes a translation of
// this view hands it back with [Registry.Published].
func (v CapturedView) Generation() uint64 { return v.generation }

// memory is what is known of one pod's protocol.
type memory struct {
	pod   types.NamespacedName
	hbone bool
	// settled: the leader has seen it written in the Workload object.
	settled bool
	// deciding: the leader is about to write it anew, perhaps differently.
	deciding bool
}

// Captured returns the set as it is now.
func (r *Registry) Captured() CapturedView {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.view == nil {
		r.view = &CapturedView{uids: maps.Clone(r.captured), generation: r.generation}
	}
	return *r.view
}

// OnCaptured sets what is called, outside of any lock, when the protocol of a
// pod changed. Set it before anything runs.
func (r *Registry) OnCaptured(f func(types.NamespacedName)) { r.onCaptured = f }

// Published tells that a translation of the view of this generation, or of a
// later one, has the given publication number. Call it for every translation,
// also for one that changed no resource.
func (r *Registry) Published(generation, publication uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.published == nil || generation >= r.published.generation {
		r.published = &publishedView{generation: generation, publication: publication}
	}
}

type publishedView struct{ generation, publication uint64 }

// Seed takes over the protocol that a Workload object has. It yields to what
// the leader itself has written, which is newer.
func (r *Registry) Seed(pod types.NamespacedName, uid types.UID, hbone bool) {
	r.mu.Lock()
	m, known := r.memories[uid]
	if known && m.settled {
		r.mu.Unlock()
		return
	}
	changed := r.setLocked(&memory{pod: pod, hbone: hbone}, uid)
	r.mu.Unlock()
	r.notifyCaptured(pod, changed)
}

// Protocol returns what is remembered of a pod's protocol.
func (r *Registry) Protocol(uid types.UID) (hbone, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, known := r.memories[uid]
	return known && m.hbone, known
}

// Decide tells that the leader is about to decide on a pod's protocol and to
// write it: until [Registry.Remember], nothing may rest on what it was before.
func (r *Registry) Decide(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.memories[uid]; ok {
		m.deciding = true
	}
}

// Remember tells that a pod's Workload object has this protocol now: the leader
// has written or read it.
func (r *Registry) Remember(pod types.NamespacedName, uid types.UID, hbone bool) {
	r.mu.Lock()
	changed := r.setLocked(&memory{pod: pod, hbone: hbone, settled: true}, uid)
	r.mu.Unlock()
	r.notifyCaptured(pod, changed)
}

// Forget drops everything of a pod whose object is gone from Kubernetes.
func (r *Registry) Forget(uid types.UID) {
	r.mu.Lock()
	m, known := r.memories[uid]
	changed := known && r.setLocked(&memory{}, uid)
	delete(r.memories, uid)
	for _, n := range r.nodes {
		delete(n.observed, uid)
		delete(n.withdrawals, uid)
	}
	r.mu.Unlock()
	if known {
		r.notifyCaptured(m.pod, changed)
	}
}

func (r *Registry) setLocked(m *memory, uid types.UID) (changed bool) {
	r.memories[uid] = m
	if _, was := r.captured[uid]; was == m.hbone {
		return false
	}
	if m.hbone {
		r.captured[uid] = struct{}{}
	} else {
		delete(r.captured, uid)
	}
	r.generation++
	r.view = nil
	return true
}

func (r *Registry) notifyCaptured(pod types.NamespacedName, changed bool) {
	if changed && r.onCaptured != nil {
		r.onCaptured(pod)
	}
}
