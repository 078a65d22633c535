package watch

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
)

// ourPrefix is that of the only annotations that are kept.
const ourPrefix = "ambit.mesh/"

// strip takes from an object what nobody here reads: of a pod that is nine
// tenths, and there are many pods. It is called before the object is shared.
func strip(object any) (any, error) {
	accessor, err := meta.Accessor(object)
	if err != nil {
		return object, nil // a tombstone: what it holds has been here before
	}
	accessor.SetManagedFields(nil)
	accessor.SetAnnotations(ourAnnotations(accessor.GetAnnotations()))
	switch o := object.(type) {
	case *corev1.Pod:
		stripPod(o)
	case *corev1.Node:
		o.Status = corev1.NodeStatus{Conditions: readyOnly(o.Status.Conditions), Addresses: o.Status.Addresses}
		o.Spec = corev1.NodeSpec{PodCIDR: o.Spec.PodCIDR, PodCIDRs: o.Spec.PodCIDRs}
	}
	return object, nil
}

func stripPod(p *corev1.Pod) {
	p.Spec = corev1.PodSpec{
		NodeName:           p.Spec.NodeName,
		ServiceAccountName: p.Spec.ServiceAccountName,
		HostNetwork:        p.Spec.HostNetwork,
	}
	status := corev1.PodStatus{
		Phase:  p.Status.Phase,
		PodIP:  p.Status.PodIP,
		PodIPs: p.Status.PodIPs,
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			status.Conditions = []corev1.PodCondition{c}
		}
	}
	p.Status = status
}

func readyOnly(conditions []corev1.NodeCondition) []corev1.NodeCondition {
	for _, c := range conditions {
		if c.Type == corev1.NodeReady {
			return []corev1.NodeCondition{{Type: c.Type, Status: c.Status}} // without the time, which changes all the time
		}
	}
	return nil
}

func ourAnnotations(annotations map[string]string) map[string]string {
	var kept map[string]string
	for key, value := range annotations {
		if strings.HasPrefix(key, ourPrefix) {
			if kept == nil {
				kept = make(map[string]string)
			}
			kept[key] = value
		}
	}
	return kept
}
