package translate

import (
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// enrolledSince is since when pods are enrolled.
type enrolledSince map[types.UID]time.Time

func (e enrolledSince) Since(uid types.UID) (since time.Time, enrolled bool) {
	since, enrolled = e[uid]
	return since, enrolled
}

// A policy knows of the pods that it is for whom it does not reach: those that run, are to be captured and are not, and since when.
func TestPoliciesKnowOfPodsThatAreNotCaptured(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	in := Input{Config: config, Captured: captured{"captured": true}, Enrolled: enrolledSince{}, AuthorizationPolicies: []*v1alpha1.AuthorizationPolicy{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny"}},
	}}
	in.Gateways = []*gateway.Gateway{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint"}, Spec: gateway.GatewaySpec{GatewayClassName: binding.Class}}}
	for i, name := range []string{"late", "later", "captured", "pending", "left-alone", "a-waypoints", "on-host", "elsewhere"} {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)},
			Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "default"},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.244.1." + string(rune('1'+i))}}},
		}
		switch name {
		case "pending":
			p.Status.Phase = corev1.PodPending
		case "a-waypoints":
			p.Labels, p.Spec.ServiceAccountName = map[string]string{binding.GatewayLabel: "waypoint"}, "waypoint"
		case "on-host":
			p.Spec.HostNetwork = true
		case "elsewhere":
			p.Spec.NodeName = "n2"
		}
		if name != "left-alone" {
			in.Enrolled.(enrolledSince)[p.UID] = noon.Add(time.Duration(i) * time.Minute)
		}
		in.Pods = append(in.Pods, p)
	}
	result, err := Translate(in)
	if err != nil {
		t.Fatal(err)
	}
	got := result.Policies[0].Uncaptured
	if want := map[string][]time.Time{"n1": {noon, noon.Add(time.Minute)}, "n2": {noon.Add(7 * time.Minute)}}; !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("not captured: %v, want %v", got, want)
	}
}
