package gateway

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gwapi "sigs.k8s.io/gateway-api/apis/v1"
)

func waypoint(change func(*gwapi.Gateway)) *gwapi.Gateway {
	g := &gwapi.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint", UID: "1", Generation: 3}}
	g.Spec.GatewayClassName = "ambit-waypoint"
	g.Spec.Listeners = []gwapi.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}
	if change != nil {
		change(g)
	}
	return g
}

func TestBadGatewaysAreNamedByTheirFields(t *testing.T) {
	host := gwapi.Hostname("a.example.com")
	tests := []struct {
		change func(*gwapi.Gateway)
		want   string
	}{
		{nil, ""},
		{func(g *gwapi.Gateway) { g.Spec.Listeners = nil }, "spec.listeners: has 0"},
		{func(g *gwapi.Gateway) { g.Spec.Listeners[0].Port = 80 }, "spec.listeners[0].port: is 80, must be 15008"},
		{func(g *gwapi.Gateway) { g.Spec.Listeners[0].Protocol = "HTTP" }, `spec.listeners[0].protocol: is "HTTP"`},
		{func(g *gwapi.Gateway) { g.Spec.Listeners[0].Hostname = &host }, "spec.listeners[0].hostname"},
		{func(g *gwapi.Gateway) { g.Labels = map[string]string{"ambit.mesh/waypoint-for": "x"} }, "metadata.labels[ambit.mesh/waypoint-for]"},
		{func(g *gwapi.Gateway) { g.Annotations = map[string]string{"ambit.mesh/replicas": "many"} }, "metadata.annotations[ambit.mesh/replicas]"},
		{func(g *gwapi.Gateway) {
			g.Annotations = map[string]string{"ambit.mesh/otlp-endpoint": "collector:4317"}
		}, "metadata.annotations[ambit.mesh/otlp-endpoint]"},
		{func(g *gwapi.Gateway) {
			g.Annotations = map[string]string{"ambit.mesh/otlp-endpoint": "http://c:4317", "ambit.mesh/trace-sampling": "101"}
		}, "metadata.annotations[ambit.mesh/trace-sampling]"},
		{func(g *gwapi.Gateway) { g.Annotations = map[string]string{"ambit.mesh/trace-sampling": "1"} }, "of no use without ambit.mesh/otlp-endpoint"},
		{func(g *gwapi.Gateway) { g.Annotations = map[string]string{"ambit.mesh/log-format": "xml"} }, "metadata.annotations[ambit.mesh/log-format]"},
	}
	for _, test := range tests {
		g := waypoint(test.change)
		got := check(g)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("got %q, want %q", got, test.want)
		}
		status := describe(g, observed{invalid: got, ready: 1, all: 1}, metav1.NewTime(time.Unix(1, 0)))
		if accepted := meta.IsStatusConditionTrue(status.Conditions, "Accepted"); accepted != (test.want == "") {
			t.Errorf("%q: accepted %t", test.want, accepted)
		}
		if programmed := meta.IsStatusConditionTrue(status.Conditions, "Programmed"); programmed != (test.want == "") {
			t.Errorf("%q: programmed %t", test.want, programmed)
		}
	}
}

func TestWithoutAReadyPodNothingIsProgrammed(t *testing.T) {
	now := metav1.NewTime(time.Unix(1, 0))
	for _, test := range []struct {
		o    observed
		want bool
	}{
		{observed{ready: 0, all: 2}, false},
		{observed{ready: 1, all: 2}, true},
		{observed{ready: 1, all: 2, failed: "apply Deployment: forbidden"}, false},
	} {
		status := describe(waypoint(nil), test.o, now)
		if got := meta.IsStatusConditionTrue(status.Conditions, "Programmed"); got != test.want {
			t.Errorf("%+v: programmed %t", test.o, got)
		}
	}
}

func TestConditionsOfOthersStay(t *testing.T) {
	theirs := metav1.Condition{Type: "example.com/Fine", Status: metav1.ConditionTrue, Reason: "R"}
	g := waypoint(func(g *gwapi.Gateway) { g.Status.Conditions = []metav1.Condition{theirs} })
	status := describe(g, observed{ready: 1, all: 1}, metav1.NewTime(time.Unix(1, 0)))
	if !meta.IsStatusConditionTrue(status.Conditions, theirs.Type) {
		t.Errorf("gone: %+v", status.Conditions)
	}
	if len(status.Listeners) != 1 || !meta.IsStatusConditionTrue(status.Listeners[0].Conditions, "Accepted") {
		t.Errorf("listeners: %+v", status.Listeners)
	}
}

// What is applied leaves alone what others set: the number of replicas, unless the
// Gateway says it.
func TestReplicasAreOthersUnlessTheGatewaySaysThem(t *testing.T) {
	free, err := objectsOf(waypoint(nil), "roots", Settings{Image: "i"})
	if err != nil || free.deployment.Spec.Replicas != nil {
		t.Errorf("replicas %v (%v)", free.deployment.Spec.Replicas, err)
	}
	said, err := objectsOf(waypoint(func(g *gwapi.Gateway) { g.Annotations = map[string]string{"ambit.mesh/replicas": "3"} }), "roots", Settings{Image: "i"})
	if err != nil || *said.deployment.Spec.Replicas != 3 {
		t.Errorf("replicas %v (%v)", said.deployment.Spec.Replicas, err)
	}
}

// Pods spread over nodes and zones, a drain takes one after the other, a rollout none before
// another is ready; and what an autoscaler reckons with is there.
func TestPodsStandWhileOthersGo(t *testing.T) {
	w, err := objectsOf(waypoint(nil), "roots", Settings{Image: "i"})
	if err != nil {
		t.Fatal(err)
	}
	pod := w.deployment.Spec.Template
	selects := func(what string, s *metav1.LabelSelector) {
		t.Helper()
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil || selector.Empty() || !selector.Matches(labels.Set(pod.Labels)) {
			t.Errorf("%s selects by %v, %v, not the pods of %v", what, s, err, pod.Labels)
		}
	}
	var over []string
	for _, c := range pod.Spec.TopologySpreadConstraints {
		over = append(over, c.TopologyKey)
		selects("spread over "+c.TopologyKey, c.LabelSelector)
		// A cluster of one node has waypoints as well; and old pods do not push new ones together.
		if c.MaxSkew != 1 || c.WhenUnsatisfiable != corev1.ScheduleAnyway || !slices.Equal(c.MatchLabelKeys, []string{"pod-template-hash"}) {
			t.Errorf("spread %+v", c)
		}
	}
	if !slices.Equal(over, []string{"kubernetes.io/hostname", "topology.kubernetes.io/zone"}) {
		t.Errorf("spread over %v", over)
	}
	selects("the Deployment", w.deployment.Spec.Selector)
	selects("the PodDisruptionBudget", w.budget.Spec.Selector)
	if w.budget.Spec.MaxUnavailable.IntValue() != 1 || w.budget.Spec.MinAvailable != nil {
		t.Errorf("budget %+v", w.budget.Spec)
	}
	if update := w.deployment.Spec.Strategy.RollingUpdate; update.MaxUnavailable.IntValue() != 0 || update.MaxSurge.IntValue() != 1 {
		t.Errorf("rollout %+v", update)
	}
	requests := pod.Spec.Containers[0].Resources.Requests
	if requests.Cpu().IsZero() || requests.Memory().IsZero() {
		t.Errorf("requests %v: an autoscaler has nothing to reckon with", requests)
	}
}

func TestPodsAreNeverCapturedAndHaveNoRights(t *testing.T) {
	w, err := objectsOf(waypoint(nil), "roots", Settings{Image: "i"})
	if err != nil {
		t.Fatal(err)
	}
	pod := w.deployment.Spec.Template
	container := pod.Spec.Containers[0]
	if pod.Labels["ambit.mesh/dataplane-mode"] != "none" || pod.Labels["gateway.networking.k8s.io/gateway-name"] != "waypoint" {
		t.Errorf("labels %v", pod.Labels)
	}
	if pod.Spec.ServiceAccountName != "waypoint" || *pod.Spec.AutomountServiceAccountToken || !*pod.Spec.SecurityContext.RunAsNonRoot ||
		*container.SecurityContext.AllowPrivilegeEscalation || !*container.SecurityContext.ReadOnlyRootFilesystem ||
		len(container.SecurityContext.Capabilities.Add) > 0 || container.SecurityContext.Capabilities.Drop[0] != "ALL" {
		t.Errorf("pod %+v", pod.Spec)
	}
	if owner := w.deployment.OwnerReferences[0]; owner.UID != "1" || owner.Kind != "Gateway" {
		t.Errorf("owner %+v", owner)
	}
	if len(w.roots.OwnerReferences) > 0 {
		t.Error("the roots would go with one of several waypoints")
	}
}

func TestTracing(t *testing.T) {
	environment := func(annotations map[string]string) map[string]string {
		w, err := objectsOf(waypoint(func(g *gwapi.Gateway) { g.Annotations = annotations }), "roots", Settings{Image: "i"})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, v := range w.deployment.Spec.Template.Spec.Containers[0].Env {
			if strings.HasPrefix(v.Name, "OTEL_") {
				found[v.Name] = v.Value
			}
		}
		return found
	}
	if got := environment(nil); len(got) > 0 {
		t.Errorf("nobody asked for spans: %v", got)
	}
	got := environment(map[string]string{"ambit.mesh/otlp-endpoint": "http://collector.observability:4317", "ambit.mesh/trace-sampling": "0.5"})
	if got["OTEL_EXPORTER_OTLP_ENDPOINT"] != "http://collector.observability:4317" || got["OTEL_TRACES_SAMPLER"] != "parentbased_traceidratio" || got["OTEL_TRACES_SAMPLER_ARG"] != "0.005" {
		t.Errorf("environment %v", got)
	}
	if got := environment(map[string]string{"ambit.mesh/otlp-endpoint": "https://c:4317"}); got["OTEL_TRACES_SAMPLER_ARG"] != "1" {
		t.Errorf("without a share: %v", got)
	}
}
