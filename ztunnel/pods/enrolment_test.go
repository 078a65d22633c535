package pods

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestEnrolment(t *testing.T) {
	const unset = "-"
	labels := func(value string) map[string]string {
		if value == unset {
			return nil
		}
		return map[string]string{DataplaneModeLabel: value}
	}
	for _, c := range []struct {
		name           string
		namespace, pod string // labels
		in             string // namespace's name; shop if empty
		hostNetwork    bool
		want           Mode
		reason         string
	}{
		{name: "nobody asks", namespace: unset, pod: unset, want: NotEnrolled, reason: "NotLabelled: "},
		{name: "the namespace asks", namespace: "ambient", pod: unset, want: Enrolled},
		{name: "the pod asks", namespace: unset, pod: "ambient", want: Enrolled},
		{name: "the pod asks against its namespace", namespace: "none", pod: "ambient", want: Enrolled},
		{name: "the pod opts out", namespace: "ambient", pod: "none", want: NotEnrolled, reason: "OptedOut: "},
		{name: "the namespace opts out", namespace: "none", pod: unset, want: NotEnrolled, reason: "OptedOut: "},
		{name: "the namespace's label is not understood", namespace: "Ambient", pod: unset, want: Misunderstood, reason: "UnknownDataplaneMode: "},
		{name: "an empty label is not understood", namespace: "", pod: unset, want: Misunderstood, reason: "UnknownDataplaneMode: "},
		{name: "the pod's label is not understood", namespace: "ambient", pod: "off", want: Misunderstood, reason: `"off"`},
		{name: "the pod speaks where its namespace is not understood", namespace: "on", pod: "ambient", want: Enrolled},
		{name: "host network", namespace: "ambient", pod: "ambient", hostNetwork: true, want: NotEnrolled, reason: "HostNetwork: "},
		{name: "the mesh's own", in: SystemNamespace, namespace: "ambient", pod: "ambient", want: NotEnrolled, reason: "System: "},
		{name: "kube-system, if asked", in: "kube-system", namespace: "ambient", pod: unset, want: Enrolled},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := c.in
			if in == "" {
				in = "shop"
			}
			mode, reason := Enrolment(
				&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: in, Labels: labels(c.pod)}, Spec: corev1.PodSpec{HostNetwork: c.hostNetwork}},
				&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: in, Labels: labels(c.namespace)}})
			if mode != c.want || !strings.Contains(reason, c.reason) || (c.reason == "") != (reason == "") {
				t.Errorf("%v, %q; want %v, %q", mode, reason, c.want, c.reason)
			}
		})
	}
}

func TestEnrolmentInANamespaceThatIsNotKnown(t *testing.T) {
	for label, want := range map[string]Mode{"": Undetermined, "ambient": Enrolled, "none": NotEnrolled} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "new"}}
		if label != "" {
			pod.Labels = map[string]string{DataplaneModeLabel: label}
		}
		if mode, reason := Enrolment(pod, nil); mode != want {
			t.Errorf("pod label %q: %v (%s), want %v", label, mode, reason, want)
		}
	}
}
