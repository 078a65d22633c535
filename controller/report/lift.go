package report

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// liftSettle is what nodes have to tell their kernels that a pod is reached in
	// plaintext too, after they acknowledged it: several times what they take.
	liftSettle = 500 * time.Millisecond
	// liftPatience is how long a pod that leaves waits for nodes that do not
	// acknowledge that it takes plaintext, and for pods that leave with it. Whoever
	// comes in plaintext then may be refused for a moment.
	liftPatience = 10 * time.Second
)

// step of a withdrawal: what has to be published, and heard.
type step struct {
	// generation of the view that has it; nil until that is written.
	generation *uint64
	// publication that has to be acknowledged; nil until it is made.
	publication *uint64
}

// advance finds the publication of what the view has since generation.
func (s *step) advance(generation uint64, published *Publication) {
	if s.generation == nil {
		s.generation = &generation
	}
	if s.publication == nil && published != nil && published.Generation >= *s.generation {
		number := published.Number
		s.publication = &number
	}
}

// MayTurn tells whether a pod that its node asks to let go may be published without
// its HBONE: every node takes it for one that is reached in plaintext as well.
func (r *Registry) MayTurn(nodeName string, uid types.UID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[nodeName]
	if !ok {
		return false
	}
	w, ok := n.withdrawals[uid]
	return ok && w.mayTurn
}

// turn lets pods be published without their HBONE that may be, and returns them.
func (r *Registry) turn(acks acknowledged) (turned []types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, n := range r.nodes {
		for uid, w := range n.withdrawals {
			if w.released || w.mayTurn {
				continue
			}
			if reason := r.liftWaitsForLocked(uid, w, acks); reason != "" {
				r.complainLocked(name, uid, w, reason)
				continue
			}
			w.mayTurn = true
			turned = append(turned, w.pod)
		}
	}
	return turned
}

// liftWaitsForLocked says what a pod waits for that shall be published without its
// HBONE, empty for nothing.
func (r *Registry) liftWaitsForLocked(uid types.UID, w *withdrawal, acks acknowledged) string {
	now := r.cfg.Now()
	switch m, known := r.memories[uid]; {
	case known && m.settled && !m.deciding && !m.HBONE:
		return "" // it is already
	case now.Sub(w.since) >= liftPatience:
		return ""
	case w.lift.generation == nil:
		return "its Workload object does not say yet that it leaves"
	case r.published != nil && r.published.Disagreed > 0:
		return fmt.Sprintf("labels and nodes do not agree yet about %d pods", r.published.Disagreed)
	case w.lift.publication == nil:
		return "the mesh in which it takes plaintext is not published yet"
	}
	if reason := r.unheardLocked(*w.lift.publication, acks); reason != "" {
		return reason
	}
	if w.heard.IsZero() {
		w.heard = now
	}
	if now.Sub(w.heard) < liftSettle {
		return "nodes are telling their kernels that it takes plaintext"
	}
	return ""
}
