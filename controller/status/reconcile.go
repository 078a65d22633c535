package status

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/report"
)

// reconcile makes the Workload of one pod be as it shall be. It returns after
// how long to look again, if there is a reason to.
func (r *Reconciler) reconcile(ctx context.Context, key types.NamespacedName) (again time.Duration, err error) {
	pod, err := r.cfg.Pods.Lister().Pods(key.Namespace).Get(key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("look up pod: %w", err)
	}
	present := r.present(key)
	if present != nil && (pod == nil || owner(present) != pod.UID) {
		if err := r.delete(ctx, present); err != nil {
			return 0, err
		}
		present = nil
	}
	if pod == nil {
		return 0, nil
	}
	r.cfg.Registry.Decide(pod.UID)
	k := r.known(pod, present)
	if !k.exists() {
		return 0, r.remove(ctx, pod, present)
	}
	return r.keep(ctx, k, present)
}

// known gathers what the status of a pod rests on.
func (r *Reconciler) known(pod *corev1.Pod, present *v1alpha1.Workload) known {
	// A namespace that is not there has no labels.
	namespace, _ := r.cfg.Namespaces.Lister().Get(pod.Namespace)
	k := known{
		pod:       pod,
		enrolment: enrolmentOf(pod, namespace),
		reporting: r.cfg.Registry.Reporting(pod.Spec.NodeName),
		now:       r.cfg.Now(),
	}
	if o, ok := r.cfg.Registry.Observed(pod.Spec.NodeName, pod.UID); ok {
		k.observation = &o
	}
	k.heartbeat, k.silent = r.cfg.Registry.Silent(pod.Spec.NodeName)
	if present != nil && present.Status.State != "" {
		k.previous = &present.Status
	}
	k.waypoint = r.waypoints.of(pod, present)
	k.mayTurn = r.cfg.Registry.MayTurn(pod.Spec.NodeName, pod.UID)
	remembered, known := r.cfg.Registry.Remembered(pod.UID)
	if !known && present != nil {
		remembered = says(present)
	}
	k.remembered = remembered
	return k
}

// remove deletes the Workload of a pod that shall have none.
func (r *Reconciler) remove(ctx context.Context, pod *corev1.Pod, present *v1alpha1.Workload) error {
	if present != nil {
		if err := r.delete(ctx, present); err != nil {
			return err
		}
	}
	if _, known := r.cfg.Registry.Remembered(pod.UID); known || present != nil {
		r.cfg.Registry.Remember(keyOf(pod), pod.UID, report.Remembered{})
	}
	return nil
}

// keep creates or updates the Workload of a pod. The registry hears of the
// protocol after it is written.
func (r *Reconciler) keep(ctx context.Context, k known, present *v1alpha1.Workload) (again time.Duration, err error) {
	wanted, desired := spec(k.pod, r.cfg.TrustDomain), k.status()
	wanted.Waypoint = k.waypoint.Through
	remembered := report.Remembered{HBONE: desired.Protocol == v1alpha1.ProtocolHBONE, Leaving: k.leaving()}
	if present == nil {
		if present, err = r.create(ctx, k.pod, wanted); err != nil || present == nil {
			return 0, err
		}
	} else if !equality.Semantic.DeepEqual(present.Spec, wanted) {
		next := present.DeepCopy()
		next.Spec = wanted
		if present, err = r.update(ctx, next); err != nil {
			return 0, err
		}
	}
	if !equality.Semantic.DeepEqual(present.Status, desired) {
		if wait := r.paced(present, desired); wait > 0 {
			again = wait
		} else {
			next := present.DeepCopy()
			next.Status = desired
			if _, err = r.updateStatus(ctx, next); err != nil {
				return 0, err
			}
		}
	}
	r.cfg.Registry.Remember(keyOf(k.pod), k.pod.UID, remembered)
	if left := k.alonenessLeft(); k.alone() && left > 0 && (again == 0 || left < again) {
		again = left
	}
	return again, nil
}

// paced returns how long a change has to wait: only one of nothing but the
// configuration's version, or of which old connections there still are, does.
func (r *Reconciler) paced(present *v1alpha1.Workload, desired v1alpha1.WorkloadStatus) time.Duration {
	same := present.Status
	if same.ConfigVersion == "" {
		return 0
	}
	same.ConfigVersion = desired.ConfigVersion
	same.OlderConnections, same.FirstOlderConnections = desired.OlderConnections, desired.FirstOlderConnections
	if !equality.Semantic.DeepEqual(same, desired) {
		return 0
	}
	return r.written.at(keyOf(present)).Add(versionPace).Sub(r.cfg.Now())
}
