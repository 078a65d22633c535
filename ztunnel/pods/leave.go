package pods

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// Where pods must be captured or known not to be, one that is left alone is
// noted in its sandbox: by the gate before the pod starts, and by its worker
// wherever the gate did not see it.

// leaveNew notes a new sandbox whose pod the gate lets start uncaptured.
func (p *Pods) leaveNew(request cniproto.AddRequest) {
	if !p.isLeft(request) {
		return // its worker will capture it, or learn that it need not
	}
	sandbox, err := p.sandboxOf(request)
	if err == nil {
		err = p.config.Dataplane.Leave(sandbox)
	}
	if err != nil {
		p.logger.Warn("pod is left alone, and not known as such yet", "pod", request.Name, "namespace", request.Namespace, "error", err)
	}
}

// isLeft tells whether a pod that the gate lets start uncaptured will stay so.
// Those of namespaces that are never held may be captured later.
func (p *Pods) isLeft(request cniproto.AddRequest) bool {
	if !p.neverHeld(request.Namespace) {
		return true
	}
	pod := p.watch.pod(request.Namespace, request.Name)
	if pod == nil {
		pod = &corev1.Pod{}
		pod.Namespace, pod.Name = request.Namespace, request.Name
	}
	mode, _ := p.enrolmentOf(pod, p.watch.namespace(request.Namespace))
	return mode == NotEnrolled || mode == Misunderstood
}

// leave notes the sandbox of a pod that is left alone, once it is known, and
// returns when to look again at the latest.
func (w *worker) leave(f facts) time.Duration {
	if !f.alive || f.hostNetwork || f.mode != NotEnrolled && f.mode != Misunderstood || len(f.ips) == 0 && f.sandbox == nil {
		return idle
	}
	if w.left.Path != "" && w.pods.isThere(w.left) {
		w.noteLeft()
		return idle
	}
	if wait := time.Until(w.leaveAt); wait > 0 {
		return wait
	}
	sandbox, err := w.find(f)
	if err == nil {
		err = w.pods.config.Dataplane.Leave(sandbox)
	}
	w.noteLeft()
	if err != nil {
		w.leavePause = min(max(2*w.leavePause, retryMin), retryMax)
		w.leaveAt = time.Now().Add(w.leavePause)
		return w.leavePause
	}
	w.left, w.leavePause = sandbox, 0
	return idle
}

// noteLeft counts as the first attempt.
func (w *worker) noteLeft() {
	w.pods.mu.Lock()
	defer w.pods.mu.Unlock()
	w.leaveTried = true
}
