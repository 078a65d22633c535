package status

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestEnrolment(t *testing.T) {
	const absent = "(absent)"
	for _, c := range []struct {
		namespace, pod string
		want           enrolment
	}{
		{absent, absent, enrolment{}},
		{"ambient", absent, enrolment{mode: modeAmbient}},
		{"none", absent, enrolment{}},
		{"Ambient", absent, enrolment{mode: modeUnknown, value: "Ambient", kind: "namespace"}},
		{"", absent, enrolment{mode: modeUnknown, kind: "namespace"}},
		{absent, "ambient", enrolment{mode: modeAmbient}},
		{"none", "ambient", enrolment{mode: modeAmbient}},
		{"sidecar", "ambient", enrolment{mode: modeAmbient}},
		{absent, "none", enrolment{mode: modeOptedOut}},
		{"ambient", "none", enrolment{mode: modeOptedOut}},
		{"ambient", "sidecar", enrolment{mode: modeUnknown, value: "sidecar", kind: "pod"}},
	} {
		labelled := func(value string) metav1.ObjectMeta {
			if value == absent {
				return metav1.ObjectMeta{}
			}
			return metav1.ObjectMeta{Labels: map[string]string{Label: value}}
		}
		got := enrolmentOf(&corev1.Pod{ObjectMeta: labelled(c.pod)}, &corev1.Namespace{ObjectMeta: labelled(c.namespace)})
		if got != c.want {
			t.Errorf("namespace %q, pod %q: %+v, want %+v", c.namespace, c.pod, got, c.want)
		}
	}
	if got := enrolmentOf(&corev1.Pod{}, nil); got != (enrolment{}) {
		t.Errorf("without a namespace: %+v", got)
	}
}
