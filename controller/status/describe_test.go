package status

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/report"
)

var (
	now     = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	earlier = now.Add(-time.Hour)
)

func runningPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart", UID: "uid-cart"},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "cart"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.244.1.5",
			PodIPs: []corev1.PodIP{{IP: "10.244.1.5"}, {IP: "fd00::5"}},
		},
	}
}

func said(state reportapi.CaptureState, reason string) *report.Observation {
	return &report.Observation{UID: "uid-cart", State: state, Reason: reason, Since: earlier}
}

func had(state v1alpha1.State, reason string) *v1alpha1.WorkloadStatus {
	return &v1alpha1.WorkloadStatus{State: state, Reason: reason, Since: seconds(earlier), ConfigVersion: "abc"}
}

// enrolled is a pod of an enrolled namespace that is not described any further.
func enrolled(change func(*known)) known {
	k := known{pod: runningPod(), enrolment: enrolment{mode: modeAmbient}, reporting: true, now: now}
	change(&k)
	return k
}

func TestState(t *testing.T) {
	for title, c := range map[string]struct {
		known   known
		summary string
		reason  string
		since   time.Time
	}{
		"captured": {enrolled(func(k *known) {
			k.observation = said(reportapi.CaptureState_CAPTURED, "")
		}), "Captured", "", earlier},
		"on its way": {enrolled(func(k *known) {
			k.observation = said(reportapi.CaptureState_PENDING, "")
		}), "Pending", "", earlier},
		"on its way, and it is known why": {enrolled(func(k *known) {
			k.observation = said(reportapi.CaptureState_PENDING, "NoNamespace: not found yet")
		}), "Pending: NoNamespace", "NoNamespace: not found yet", earlier},
		"failed": {enrolled(func(k *known) {
			k.observation = said(reportapi.CaptureState_FAILED, "BPFFSMissing: mount it")
		}), "Failed: BPFFSMissing", "BPFFSMissing: mount it", earlier},
		"failed without a word": {enrolled(func(k *known) {
			k.observation = said(reportapi.CaptureState_FAILED, "")
		}), "Failed: Unexplained", "Unexplained", earlier},
		"being withdrawn": {enrolled(func(k *known) {
			k.enrolment = enrolment{}
			k.observation = said(reportapi.CaptureState_WITHDRAWING, "")
		}), "Pending: Withdrawing", "Withdrawing", earlier},
		"nobody said anything": {enrolled(func(k *known) {}), "Pending: NotReported", "node n1", now},
		"not reported any more": {enrolled(func(k *known) {
			k.previous, k.remembered.HBONE = had(v1alpha1.StateCaptured, ""), true
		}), "Pending: NotReported", "node n1", now},
		"not reported for long": {enrolled(func(k *known) {
			k.previous = had(v1alpha1.StatePending, "NotReported: x")
		}), "Pending: NotReported", "node n1", earlier},
		"a new leader waits for the node": {enrolled(func(k *known) {
			k.previous, k.reporting = had(v1alpha1.StateCaptured, ""), false
		}), "Captured", "", earlier},
		"a new leader, and what it had was not the node's word": {enrolled(func(k *known) {
			k.previous, k.reporting = had(v1alpha1.StateNotEnrolled, "OptedOut: x"), false
		}), "Pending: NotReported", "node n1", now},
		"a new leader, and the label was repaired": {enrolled(func(k *known) {
			k.previous, k.reporting = had(v1alpha1.StateFailed, "UnknownDataplaneMode: x"), false
		}), "Pending: NotReported", "node n1", now},
		"the node is silent": {enrolled(func(k *known) {
			k.observation = said(reportapi.CaptureState_CAPTURED, "")
			k.silent, k.heartbeat = true, now.Add(-time.Minute)
		}), "Stale since 11:59:00Z", "NodeSilent", now.Add(-time.Minute)},
		"on a node without ztunnel": {enrolled(func(k *known) {
			k.reporting, k.pod.Status.StartTime = false, seconds(now.Add(-time.Minute))
		}), "Failed: NoZtunnel", "node n1", now},
		"on a node without ztunnel, for long": {enrolled(func(k *known) {
			k.reporting, k.pod.Status.StartTime = false, seconds(earlier)
			k.previous = had(v1alpha1.StateFailed, "NoZtunnel: x")
		}), "Failed: NoZtunnel", "node n1", earlier},
		"on a node that is new": {enrolled(func(k *known) {
			k.reporting, k.pod.Status.StartTime = false, seconds(now.Add(-59*time.Second))
		}), "Pending: NotReported", "node n1", now},
		"not running yet, on a node without ztunnel": {enrolled(func(k *known) {
			k.reporting, k.pod.Status.StartTime, k.pod.Status.Phase = false, seconds(earlier), corev1.PodPending
		}), "Pending: NotReported", "node n1", now},
		"captured by an earlier node of the name": {enrolled(func(k *known) {
			k.reporting, k.pod.Status.StartTime, k.remembered.HBONE = false, seconds(earlier), true
			k.previous = had(v1alpha1.StateCaptured, "")
		}), "Captured", "", earlier},
		"a node without ztunnel got one": {enrolled(func(k *known) {
			k.reporting, k.pod.Status.StartTime, k.heartbeat = false, seconds(earlier), now
			k.previous = had(v1alpha1.StateFailed, "NoZtunnel: x")
		}), "Pending: NotReported", "node n1", now},
		"not scheduled": {enrolled(func(k *known) {
			k.pod.Spec.NodeName = ""
		}), "Pending: Unscheduled", "Unscheduled", now},
		"the node's network": {enrolled(func(k *known) {
			k.pod.Spec.HostNetwork = true
			k.silent, k.heartbeat = true, earlier
		}), "NotEnrolled", "HostNetwork", now},
		"over": {enrolled(func(k *known) {
			k.pod.Status.Phase = corev1.PodSucceeded
		}), "NotEnrolled", "Completed", now},
		"opted out": {enrolled(func(k *known) {
			k.enrolment.mode = modeOptedOut
		}), "NotEnrolled", "OptedOut", now},
		"opted out, and the node is silent": {enrolled(func(k *known) {
			k.enrolment.mode = modeOptedOut
			k.silent, k.heartbeat = true, earlier
		}), "NotEnrolled", "OptedOut", now},
		"opted out, and still captured": {enrolled(func(k *known) {
			k.enrolment.mode, k.remembered.HBONE = modeOptedOut, true
			k.observation = said(reportapi.CaptureState_CAPTURED, "")
		}), "Captured", "", earlier},
		"a label that means nothing": {enrolled(func(k *known) {
			k.enrolment = enrolment{mode: modeUnknown, value: "Ambient", kind: "namespace"}
		}), "Failed: UnknownDataplaneMode", `ambit.mesh/dataplane-mode="Ambient" of the namespace`, now},
		"not eligible, says the node": {enrolled(func(k *known) {
			k.observation = said(reportapi.CaptureState_NOT_ENROLLED, "Excluded: by configuration")
		}), "NotEnrolled", "Excluded", earlier},
	} {
		got := c.known.status()
		if got.Summary != c.summary || !strings.Contains(got.Reason, c.reason) || (got.Reason == "") != (c.reason == "") {
			t.Errorf("%s: %q, reason %q; want %q, %q", title, got.Summary, got.Reason, c.summary, c.reason)
		}
		if !got.Since.Time.Equal(c.since) {
			t.Errorf("%s: since %v, want %v", title, got.Since, c.since)
		}
	}
}

func TestProtocol(t *testing.T) {
	observed := func(state reportapi.CaptureState) func(*known) {
		return func(k *known) { k.observation = said(state, "") }
	}
	for title, c := range map[string]struct {
		change func(*known)
		// what it is when nothing, and when HBONE, is remembered.
		fresh, remembered v1alpha1.Protocol
	}{
		"nothing said": {func(*known) {}, v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"captured":     {observed(reportapi.CaptureState_CAPTURED), v1alpha1.ProtocolHBONE, v1alpha1.ProtocolHBONE},
		"pending":      {observed(reportapi.CaptureState_PENDING), v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"failed":       {observed(reportapi.CaptureState_FAILED), v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"withdrawing":  {observed(reportapi.CaptureState_WITHDRAWING), v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"withdrawing, and all know that it takes plaintext": {func(k *known) {
			k.mayTurn, k.observation = true, said(reportapi.CaptureState_WITHDRAWING, "")
		}, v1alpha1.ProtocolTCP, v1alpha1.ProtocolTCP},
		"not enrolled, the labels disagree": {observed(reportapi.CaptureState_NOT_ENROLLED), v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"not enrolled, the labels agree": {func(k *known) {
			k.enrolment = enrolment{}
			k.observation = said(reportapi.CaptureState_NOT_ENROLLED, "")
		}, v1alpha1.ProtocolTCP, v1alpha1.ProtocolTCP},
		"the label is gone, nothing said": {func(k *known) { k.enrolment = enrolment{} }, v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"silent":                          {func(k *known) { k.silent, k.heartbeat = true, earlier }, v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"silent since it was captured": {func(k *known) {
			k.silent, k.heartbeat, k.observation = true, earlier, said(reportapi.CaptureState_CAPTURED, "")
		}, v1alpha1.ProtocolHBONE, v1alpha1.ProtocolHBONE},
		"a label that means nothing": {func(k *known) { k.enrolment = enrolment{mode: modeUnknown} }, v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
		"completed":                  {func(k *known) { k.pod.Status.Phase = corev1.PodFailed }, v1alpha1.ProtocolTCP, v1alpha1.ProtocolHBONE},
	} {
		k := enrolled(c.change)
		if got := k.status().Protocol; got != c.fresh {
			t.Errorf("%s: %s, want %s", title, got, c.fresh)
		}
		k.remembered.HBONE = true
		if got := k.status().Protocol; got != c.remembered {
			t.Errorf("%s, HBONE remembered: %s, want %s", title, got, c.remembered)
		}
	}
}

func TestWhichPodsHaveAWorkload(t *testing.T) {
	none := enrolled(func(k *known) { k.enrolment = enrolment{} })
	with := func(change func(*known)) known { k := none; change(&k); return k }
	for title, c := range map[string]struct {
		known known
		want  bool
	}{
		"of an enrolled namespace":         {enrolled(func(*known) {}), true},
		"opted out":                        {with(func(k *known) { k.enrolment.mode = modeOptedOut }), true},
		"with a label that means nothing":  {with(func(k *known) { k.enrolment.mode = modeUnknown }), true},
		"of the node's network, enrolled":  {enrolled(func(k *known) { k.pod.Spec.HostNetwork = true }), true},
		"of any other namespace":           {none, false},
		"no longer enrolled, HBONE":        {with(func(k *known) { k.remembered.HBONE = true }), true},
		"no longer enrolled, captured":     {with(func(k *known) { k.observation = said(reportapi.CaptureState_CAPTURED, "") }), true},
		"no longer enrolled, being let go": {with(func(k *known) { k.observation = said(reportapi.CaptureState_WITHDRAWING, "") }), true},
		"no longer enrolled, let go":       {with(func(k *known) { k.observation = said(reportapi.CaptureState_NOT_ENROLLED, "") }), false},
		"not enrolled, node lost its power": {with(func(k *known) {
			k.remembered.HBONE, k.observation = true, said(reportapi.CaptureState_NOT_ENROLLED, "")
		}), false},
	} {
		if got := c.known.exists(); got != c.want {
			t.Errorf("a pod %s: %v, want %v", title, got, c.want)
		}
	}
}

func TestCertificateAndConfiguration(t *testing.T) {
	expires := now.Add(24*time.Hour + 300*time.Millisecond)
	k := enrolled(func(k *known) {
		k.observation = said(reportapi.CaptureState_CAPTURED, "")
		k.observation.CertificateExpires, k.observation.CertificateSerial, k.observation.ConfigVersion = expires, "1f", "v1"
		k.observation.Older, k.observation.FirstOlder = 2, []string{"10.0.0.7:1 -> 10.0.0.8:2"}
	})
	got := k.status()
	if !got.CertificateExpires.Time.Equal(expires.Truncate(time.Second)) || got.ConfigVersion != "v1" || got.CertificateSerial != "1f" || got.OlderConnections != 2 || len(got.FirstOlderConnections) != 1 {
		t.Errorf("%v, %q", got.CertificateExpires, got.ConfigVersion)
	}
	// A silent node's last word stays.
	k.previous, k.observation, k.silent, k.heartbeat = &got, nil, true, earlier
	if stale := k.status(); !stale.CertificateExpires.Equal(got.CertificateExpires) || stale.ConfigVersion != "v1" || stale.CertificateSerial != "1f" {
		t.Errorf("stale: %v, %q", stale.CertificateExpires, stale.ConfigVersion)
	}
	// Who is not enrolled has neither.
	k.pod.Spec.HostNetwork = true
	if none := k.status(); none.CertificateExpires != nil || none.CertificateSerial != "" || none.ConfigVersion != "" {
		t.Errorf("not enrolled: %v, %q", none.CertificateExpires, none.ConfigVersion)
	}
}

func TestStatusIsStable(t *testing.T) {
	k := enrolled(func(*known) {})
	first := k.status()
	k.previous, k.now = &first, now.Add(time.Hour)
	if again := k.status(); again.Summary != first.Summary || !again.Since.Equal(first.Since) {
		t.Errorf("%+v became %+v although nothing happened", first, again)
	}
}

func TestSpec(t *testing.T) {
	pod := runningPod()
	got := spec(pod, "cluster.local")
	if len(got.Addresses) != 2 || got.Addresses[0] != "10.244.1.5" || got.Node != "n1" || got.Identity != "spiffe://cluster.local/ns/shop/sa/cart" {
		t.Errorf("%+v", got)
	}
	pod.Spec.ServiceAccountName = ""
	if got := spec(pod, "cluster.local").Identity; got != "spiffe://cluster.local/ns/shop/sa/default" {
		t.Error(got)
	}
	pod.Status.Phase = corev1.PodSucceeded
	if got := spec(pod, "cluster.local").Addresses; len(got) != 0 {
		t.Errorf("a pod that ended has addresses %v", got)
	}
}

// Before the first publication nobody knows the way to a pod: what its object says
// stays.
func TestTheWayToAPodIsAsPublished(t *testing.T) {
	var w waypoints
	present := &v1alpha1.Workload{}
	present.Spec.Waypoint, present.Status.Binding, present.Status.WaypointReady = "shop/waypoint", "InForce", "WaypointReady"
	pod := runningPod()
	if got := w.of(pod, present); got != (Waypoint{"shop/waypoint", "InForce", "WaypointReady"}) {
		t.Errorf("before anything is published: %+v", got)
	}
	if changed := w.swap(map[types.UID]Waypoint{pod.UID: {Through: "shop/other"}}); !changed("any") {
		t.Error("the first publication is news for every pod")
	}
	if got := w.of(pod, present); got != (Waypoint{Through: "shop/other"}) {
		t.Errorf("published: %+v", got)
	}
	if changed := w.swap(nil); !changed(pod.UID) || changed("any") {
		t.Error("what is gone is news for its pod, and for no other")
	}
	if got := w.of(pod, present); got != (Waypoint{}) {
		t.Errorf("not mentioned any more: %+v", got)
	}
}
