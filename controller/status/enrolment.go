package status

import (
	corev1 "k8s.io/api/core/v1"
)

// Label enrols a namespace or a pod, or opts a pod out.
const Label = "ambit.mesh/dataplane-mode"

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
