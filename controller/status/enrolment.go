package status

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/report"
)

// Label enrols a namespace or a pod, or opts a pod out.
const Label = "ambit.mesh/dataplane-mode"

// RemovingLabel on the system namespace, with the value "true", gives all pods back.
const RemovingLabel = "ambit.mesh/removing"

// mode is what the labels of a pod and its namespace ask for.
type mode int

const (
	// modeNone: nothing enrols the pod, and it has no label of its own.
	modeNone mode = iota
	// modeAmbient: it shall be captured.
	modeAmbient
	// modeOptedOut: its own label says none.
	modeOptedOut
	// modeUnknown: a value that means nothing.
	modeUnknown
)

// enrolment is a mode and where it comes from.
type enrolment struct {
	mode mode
	// value and kind of the object with a label that is not understood.
	value, kind string
}

// enrolmentOf reads the labels. A pod's own beats its namespace's; a nil
// namespace has none.
func enrolmentOf(pod *corev1.Pod, namespace *corev1.Namespace) enrolment {
	if value, ok := pod.Labels[Label]; ok {
		return enrolmentBy(value, "pod", modeOptedOut)
	}
	if namespace == nil {
		return enrolment{}
	}
	if value, ok := namespace.Labels[Label]; ok {
		return enrolmentBy(value, "namespace", modeNone)
	}
	return enrolment{}
}

func enrolmentBy(value, kind string, none mode) enrolment {
	switch value {
	case "ambient":
		return enrolment{mode: modeAmbient}
	case "none":
		return enrolment{mode: none}
	default:
		return enrolment{mode: modeUnknown, value: value, kind: kind}
	}
}

// Enrolment is the pods whose capture is asked for, and since when this process has seen that; zero for those that nobody
// is about to capture.
type Enrolment map[types.UID]time.Time

// Since tells whether the capture of a pod is asked for, and since when.
func (e Enrolment) Since(uid types.UID) (since time.Time, enrolled bool) {
	since, enrolled = e[uid]
	return since, enrolled
}

// Leaving finds those that the labels want let go of some pods, as far as the labels are known.
func Leaving(pods []*corev1.Pod, namespaces []*corev1.Namespace, system string, of interface{ Has(types.UID) bool }) report.Leaving {
	byName := indexNamespaces(namespaces)
	removing := isRemoving(byName[system])
	all := make(report.Leaving)
	for _, p := range pods {
		if !of.Has(p.UID) || terminal(p) || byName[p.Namespace] == nil {
			continue
		}
		if mode := enrolmentOf(p, byName[p.Namespace]).mode; removing || mode == modeNone || mode == modeOptedOut {
			all[p.UID] = struct{}{}
		}
	}
	return all
}

func indexNamespaces(namespaces []*corev1.Namespace) map[string]*corev1.Namespace {
	byName := make(map[string]*corev1.Namespace, len(namespaces))
	for _, n := range namespaces {
		byName[n.Name] = n
	}
	return byName
}

func isRemoving(system *corev1.Namespace) bool {
	return system != nil && system.Labels[RemovingLabel] == "true"
}

// Enrolled finds the pods that are to be captured, whether they are or not; those of before have been so for longer than since
// now. One with a label that is not understood is among them: nobody captures it, and to take it for one that is left alone would be
// to guess.
func Enrolled(pods []*corev1.Pod, namespaces []*corev1.Namespace, system string, before Enrolment, now time.Time) Enrolment {
	byName := indexNamespaces(namespaces)
	all := make(Enrolment)
	if isRemoving(byName[system]) {
		return all
	}
	for _, p := range pods {
		if p.Spec.HostNetwork || p.Namespace == system || terminal(p) {
			continue
		}
		switch enrolmentOf(p, byName[p.Namespace]).mode {
		case modeAmbient:
			since := before[p.UID]
			if since.IsZero() {
				since = now
			}
			all[p.UID] = since
		case modeUnknown:
			all[p.UID] = time.Time{}
		}
	}
	return all
}
