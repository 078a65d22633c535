package status

import (
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/report"
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

func TestEnrolled(t *testing.T) {
	pod := func(namespace, name string, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Labels: map[string]string{}}}
		if change != nil {
			change(p)
		}
		return p
	}
	namespace := func(name, key, value string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{key: value}}}
	}
	pods := []*corev1.Pod{
		pod("shop", "enrolled", nil),
		pod("shop", "opted-out", func(p *corev1.Pod) { p.Labels[Label] = "none" }),
		pod("shop", "misunderstood", func(p *corev1.Pod) { p.Labels[Label] = "sidecar" }),
		pod("shop", "on-host", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		pod("shop", "ended", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("bank", "labelled-itself", func(p *corev1.Pod) { p.Labels[Label] = "ambient" }),
		pod("bank", "left-alone", nil),
		pod("ambit-system", "of-the-mesh", func(p *corev1.Pod) { p.Labels[Label] = "ambient" }),
	}
	namespaces := []*corev1.Namespace{namespace("shop", Label, "ambient"), namespace("ambit-system", "other", "label")}
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	first := Enrolled(pods, namespaces, "ambit-system", nil, noon)
	got := slices.Sorted(maps.Keys(first))
	if want := []types.UID{"enrolled", "labelled-itself", "misunderstood"}; !slices.Equal(got, want) {
		t.Errorf("enrolled %v, want %v", got, want)
	}
	// Since when is from pass to pass: that of one whose label goes, and comes back, begins anew, and that of one whose label is not
	// understood when it is.
	since := func(when string, e Enrolment, want map[types.UID]time.Time) {
		t.Helper()
		for uid, want := range want {
			if got, ok := e.Since(uid); !got.Equal(want) || !ok {
				t.Errorf("%s: %s since %v, %v; want %v", when, uid, got, ok, want)
			}
		}
	}
	since("at noon", first, map[types.UID]time.Time{"enrolled": noon, "labelled-itself": noon, "misunderstood": {}})
	pods[2].Labels[Label], pods[5].Labels[Label], pods[6].Labels[Label] = "ambient", "none", "ambient"
	second := Enrolled(pods, namespaces, "ambit-system", first, noon.Add(time.Minute))
	since("later", second, map[types.UID]time.Time{"enrolled": noon, "misunderstood": noon.Add(time.Minute), "left-alone": noon.Add(time.Minute)})
	if _, ok := second.Since("labelled-itself"); ok {
		t.Error("enrolled without a label")
	}
	pods[5].Labels[Label] = "ambient"
	third := Enrolled(pods, namespaces, "ambit-system", second, noon.Add(time.Hour))
	since("much later", third, map[types.UID]time.Time{"enrolled": noon, "left-alone": noon.Add(time.Minute), "labelled-itself": noon.Add(time.Hour)})

	namespaces[1] = namespace("ambit-system", RemovingLabel, "true")
	if got := Enrolled(pods, namespaces, "ambit-system", nil, noon); len(got) > 0 {
		t.Errorf("while the mesh is being removed, enrolled %v", got)
	}
}

func TestLeaving(t *testing.T) {
	pod := func(namespace, name, label string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name)}}
		if label != "" {
			p.Labels = map[string]string{Label: label}
		}
		return p
	}
	namespace := func(name string, labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	ended, uncaptured := pod("bank", "ended", ""), pod("bank", "uncaptured", "")
	ended.Status.Phase = corev1.PodFailed
	pods := []*corev1.Pod{
		pod("shop", "stays", ""), pod("shop", "opted-out", "none"), pod("shop", "misunderstood", "sidecar"), pod("bank", "unlabelled", ""),
		pod("bank", "labelled", "ambient"), pod("unknown", "of-nobody-knows-what", ""), ended, uncaptured,
	}
	captured := report.Leaving{}
	for _, p := range pods {
		captured[p.UID] = struct{}{}
	}
	delete(captured, uncaptured.UID)
	namespaces := []*corev1.Namespace{namespace("shop", map[string]string{Label: "ambient"}), namespace("bank", nil)}
	for _, c := range []struct {
		removing string
		want     []types.UID
	}{
		{"", []types.UID{"opted-out", "unlabelled"}},
		{"waypoints", []types.UID{"opted-out", "unlabelled"}},
		{"true", []types.UID{"labelled", "misunderstood", "opted-out", "stays", "unlabelled"}},
	} {
		system := namespace("ambit-system", map[string]string{RemovingLabel: c.removing})
		got := slices.Sorted(maps.Keys(Leaving(pods, append(namespaces, system), "ambit-system", captured)))
		if !slices.Equal(got, c.want) {
			t.Errorf("removing %q: %v leave, want %v", c.removing, got, c.want)
		}
	}
}
