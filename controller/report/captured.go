package report

import (
	"maps"

	"k8s.io/apimachinery/pkg/types"
)

// CapturedView is the set of pods published as HBONE at one moment, and of those
// that leave. Immutable.
type CapturedView struct {
	uids       map[types.UID]struct{}
	leaving    Leaving
	generation uint64
}

// Leaving are the pods that their nodes ask to let go, published as HBONE still or not.
type Leaving map[types.UID]struct{}

// Has says whether a pod is one of them.
func (l Leaving) Has(uid types.UID) bool {
	_, ok := l[uid]
	return ok
}

// Has says whether a pod is published as HBONE.
func (v CapturedView) Has(uid types.UID) bool {
	_, ok := v.uids[uid]
	return ok
}

// Leaving returns those that leave the mesh.
func (v CapturedView) Leaving() Leaving { return v.leaving }

// Generation counts the changes of the sets. Whoever publishes a translation of
// this view hands it back with [Registry.Published].
func (v CapturedView) Generation() uint64 { return v.generation }

// Remembered is what a pod's Workload object says of how the pod is published.
type Remembered struct {
	HBONE bool
	// Leaving: its node asks to let it go.
	Leaving bool
}

// memory is what is known of one pod's protocol.
type memory struct {
	Remembered
	pod types.NamespacedName
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
		r.view = &CapturedView{uids: maps.Clone(r.captured), leaving: maps.Clone(r.leaving), generation: r.generation}
	}
	return *r.view
}

// OnCaptured sets what is called, outside of any lock, when what is remembered of
// a pod changed. Set it before anything runs.
func (r *Registry) OnCaptured(f func(types.NamespacedName)) { r.onCaptured = f }

// Publication is a translation of the view of a generation.
type Publication struct {
	Generation, Number uint64
	// Disagreed are how many pods either the labels want let go, or their nodes: they take no
	// plaintext in it.
	Disagreed int
}

// Published tells of a translation of the view of this generation, or of a later
// one. Call it for every translation, also for one that changed no resource.
func (r *Registry) Published(p Publication) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.published == nil || p.Generation >= r.published.Generation {
		r.published = &p
	}
}

// Seed takes over what a Workload object says. It yields to what
// the leader itself has written, which is newer.
func (r *Registry) Seed(pod types.NamespacedName, uid types.UID, says Remembered) {
	r.mu.Lock()
	m, known := r.memories[uid]
	if known && m.settled {
		r.mu.Unlock()
		return
	}
	changed := r.setLocked(&memory{Remembered: says, pod: pod}, uid)
	r.mu.Unlock()
	r.notifyCaptured(pod, changed)
}

// Remembered returns what is remembered of a pod; nothing if it is not known.
func (r *Registry) Remembered(uid types.UID) (says Remembered, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, known := r.memories[uid]
	if !known {
		return Remembered{}, false
	}
	return m.Remembered, true
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

// Remember tells that a pod's Workload object says this now: the leader
// has written or read it.
func (r *Registry) Remember(pod types.NamespacedName, uid types.UID, says Remembered) {
	r.mu.Lock()
	changed := r.setLocked(&memory{Remembered: says, pod: pod, settled: true}, uid)
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
	hbone, leaving := change(r.captured, uid, m.HBONE), change(r.leaving, uid, m.Leaving)
	if !hbone && !leaving {
		return false
	}
	r.generation++
	r.view = nil
	return true
}

// change has uid in the set or not, and tells whether it was otherwise before.
func change(set map[types.UID]struct{}, uid types.UID, in bool) bool {
	_, was := set[uid]
	if in {
		set[uid] = struct{}{}
	} else {
		delete(set, uid)
	}
	return was != in
}

func (r *Registry) notifyCaptured(pod types.NamespacedName, changed bool) {
	if changed && r.onCaptured != nil {
		r.onCaptured(pod)
	}
}
