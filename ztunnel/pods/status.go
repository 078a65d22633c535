package pods

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Status is what this node observed of one pod.
type Status struct {
	UID            string    `json:"uid"`
	Namespace      string    `json:"namespace"`
	Name           string    `json:"name"`
	ServiceAccount string    `json:"serviceAccount"`
	State          State     `json:"-"`
	StateName      string    `json:"state"`
	Reason         string    `json:"reason,omitempty"`
	Since          time.Time `json:"since"`
	NetNS          string    `json:"netns,omitempty"`
	// attempt that the state belongs to.
	attempt int
}

// report makes a state known.
func (w *worker) report(state State, reason string) {
	w.pods.mu.Lock()
	defer w.pods.mu.Unlock()
	was := w.status
	w.status.Namespace, w.status.Name, w.status.ServiceAccount = w.facts.namespace, w.facts.name, w.facts.serviceAccount
	w.status.attempt = w.tried
	w.status.NetNS = ""
	if w.running != nil {
		w.status.NetNS = w.sandbox.Path
	}
	if state == StateCaptured || state == StateWithdrawing {
		reason = ""
	}
	w.status.State, w.status.StateName, w.status.Reason = state, state.String(), reason
	w.attempted = w.attempted || state == StateCaptured || state == StateFailed || state == StateWithdrawing
	if w.status == was {
		return
	}
	if w.status.State != was.State {
		w.status.Since = time.Now()
	}
	close(w.waiters)
	w.waiters = make(chan struct{})
	w.pods.signal()
}

// Changed has an element when a status changed since it was last received.
func (p *Pods) Changed() <-chan struct{} { return p.changed }

func (p *Pods) signal() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Statuses returns what is observed of each pod now, by namespace and name. It
// is whole once Synced is closed.
func (p *Pods) Statuses() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Status, 0, len(p.workers))
	for _, w := range p.workers {
		if w.facts.alive || w.running != nil {
			all = append(all, w.status)
		}
	}
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return all
}

// Namespaces returns those of the node's pods that are not at its own network, each once.
func (p *Pods) Namespaces() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := map[string]bool{}
	for _, w := range p.workers {
		if w.facts.alive && !w.facts.hostNetwork {
			names[w.facts.namespace] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Problems are troubles of the node that show in no pod's status.
func (p *Pods) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var problems []string
	if p.saveError != nil {
		problems = append(problems, "StateNotWritable: "+p.saveError.Error())
	}
	if p.gateError != nil {
		problems = append(problems, "EnrolmentNotWritable: "+p.gateError.Error())
	}
	if !p.isSynced {
		problems = append(problems, "KubernetesNotSynced: pods and namespaces are not known yet")
	}
	return append(problems, p.ungatedLocked()...)
}
