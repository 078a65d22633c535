package status

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// Waypoint is what Workload objects say of the way to a pod.
type Waypoint struct {
	// Through which waypoints, as the WAYPOINT column shows it.
	Through string
	// Binding is how far the pod's own one is.
	Binding string
	// Ready tells whether its own waypoint can do its part.
	Ready string
}

// waypoints are those of the last publication.
type waypoints struct {
	mu    sync.Mutex
	known bool                   // there was a publication; guarded by mu
	byPod map[types.UID]Waypoint // guarded by mu
}

// of returns what is known of the way to a pod: as long as nothing is published, what
// its object says.
func (w *waypoints) of(pod *corev1.Pod, present *v1alpha1.Workload) Waypoint {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.known && present != nil {
		return Waypoint{Through: present.Spec.Waypoint, Binding: present.Status.Binding, Ready: present.Status.WaypointReady}
	}
	return w.byPod[pod.UID]
}

// swap takes what is known from now on, and tells of which pods that is something else.
func (w *waypoints) swap(byPod map[types.UID]Waypoint) func(types.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, known := w.byPod, w.known
	w.byPod, w.known = byPod, true
	return func(uid types.UID) bool { return !known || before[uid] != byPod[uid] }
}

// Waypoints tells the way to pods, as it is published; those not mentioned are
// reached without a waypoint.
func (r *Reconciler) Waypoints(byPod map[types.UID]Waypoint) {
	changed := r.waypoints.swap(byPod)
	if r.queue.Load() == nil {
		return // who begins to lead looks at all of them
	}
	pods, err := r.cfg.Pods.Lister().List(labels.Everything())
	if err != nil {
		return // the list is in memory: it does not happen
	}
	for _, pod := range pods {
		if changed(pod.UID) {
			r.enqueue(keyOf(pod))
		}
	}
}
