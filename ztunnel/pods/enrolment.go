package pods

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// DataplaneModeLabel enrols pods, on a namespace or on a pod, whose word wins.
const DataplaneModeLabel = "ambit.mesh/dataplane-mode"

// Values of DataplaneModeLabel; there are no others.
const (
	modeAmbient = "ambient"
	modeNone    = "none"
)

// DNSCaptureAnnotation on a pod, with the value "false", leaves what it asks DNS servers alone. It is read when the pod is
// captured. Names of egress policies are unknown for such a pod.
const DNSCaptureAnnotation = "ambit.mesh/dns-capture"

// dnsCapture is what the annotation asks for; a value that is not understood asks for nothing.
func dnsCapture(annotation string) (capture, understood bool) {
	switch annotation {
	case "", "true":
		return true, true
	case "false":
		return false, true
	}
	return true, false
}

// SystemNamespace is the mesh's own; its pods are never captured.
const SystemNamespace = "ambit-system"

// RemovingLabel on SystemNamespace, with the value "true", says that the mesh is
// being removed: all pods are given back, in order, while ztunnel still runs. (With
// another value the controller has what is bound to waypoints unbound, before that.)
const RemovingLabel = "ambit.mesh/removing"

// Mode is whether a pod is to be captured.
type Mode int

const (
	// Undetermined: nothing is done that has not been done before.
	Undetermined Mode = iota
	// NotEnrolled pods are left alone.
	NotEnrolled
	// Enrolled pods are captured.
	Enrolled
	// Misunderstood pods bear a label that means nothing: they are reported, not
	// captured, and kept captured if they were.
	Misunderstood
)

func (m Mode) String() string {
	return [...]string{"Undetermined", "NotEnrolled", "Enrolled", "Misunderstood"}[m]
}

// Enrolment tells whether Kubernetes asks for a pod to be captured, and where
// not, why: a CamelCase word, a colon, and a sentence. A nil namespace is one
// that is not known yet: then only the pod's own label can tell.
func Enrolment(pod *corev1.Pod, namespace *corev1.Namespace) (Mode, string) {
	if pod.Spec.HostNetwork {
		return NotEnrolled, "HostNetwork: the pod shares its node's network and cannot be captured apart from it"
	}
	if pod.Namespace == SystemNamespace {
		return NotEnrolled, "System: the mesh does not capture its own pods"
	}
	if value, ok := pod.Labels[DataplaneModeLabel]; ok {
		return modeOf(value, "pod", "OptedOut: the pod's label says none")
	}
	if namespace == nil {
		return Undetermined, "NamespaceUnknown: the pod's namespace is not known yet"
	}
	if value, ok := namespace.Labels[DataplaneModeLabel]; ok {
		return modeOf(value, "namespace", "OptedOut: the namespace's label says none")
	}
	return NotEnrolled, "NotLabelled: neither the pod nor its namespace asks for the mesh"
}

// enrolmentOf is Enrolment, unless the mesh is being removed.
func (p *Pods) enrolmentOf(pod *corev1.Pod, namespace *corev1.Namespace) (Mode, string) {
	mode, reason := Enrolment(pod, namespace)
	if mode != NotEnrolled && p.watch.removing() {
		return NotEnrolled, "Removing: the mesh is being removed from the cluster"
	}
	return mode, reason
}

func modeOf(value, bearer, none string) (Mode, string) {
	switch value {
	case modeAmbient:
		return Enrolled, ""
	case modeNone:
		return NotEnrolled, none
	}
	return Misunderstood, fmt.Sprintf("UnknownDataplaneMode: the %s's label %s=%q is neither %s nor %s",
		bearer, DataplaneModeLabel, value, modeAmbient, modeNone)
}

// terminal pods never run again.
func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// neverHeld tells whether the CNI gate lets all pods of a namespace start.
func (p *Pods) neverHeld(namespace string) bool {
	return slices.Contains(p.config.NeverHeld, namespace)
}
