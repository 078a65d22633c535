package gateway

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/internal/binding"
)

func serviceNamed(name string, conditions ...metav1.Condition) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Generation: 2}}
	s.Status.Conditions = conditions
	return s
}

func boundTo(name string, change func(*translate.Bound)) *translate.Bound {
	b := &translate.Bound{Kind: "Service", Namespace: "shop", Name: name, UID: types.UID(name), Stage: translate.Enforced, Waypoint: types.NamespacedName{Namespace: "shop", Name: "waypoint"}}
	if change != nil {
		change(b)
	}
	return b
}

func TestWhatBecameOfABinding(t *testing.T) {
	for _, test := range []struct {
		change  func(*translate.Bound)
		inForce bool
		status  metav1.ConditionStatus
		reason  string
		says    string
	}{
		{nil, true, metav1.ConditionTrue, binding.InForce, "waypoint shop/waypoint, and nobody else"},
		{nil, false, metav1.ConditionFalse, binding.Pending, "until every node"},
		{func(b *translate.Bound) { b.Stage = translate.Announced }, false, metav1.ConditionFalse, binding.Pending, "go straight to it until waypoint shop/waypoint is ready"},
		{func(b *translate.Bound) { b.Leaving = true }, true, metav1.ConditionFalse, binding.Leaving, "others are let in"},
		{func(b *translate.Bound) { b.Leaving, b.Stage = true, translate.Announced }, true, metav1.ConditionFalse, binding.Leaving, "go straight to it, and those"},
		{func(b *translate.Bound) {
			b.Stage, b.From = translate.Announced, types.NamespacedName{Namespace: "shop", Name: "old"}
		}, false, metav1.ConditionFalse, binding.Pending, "through waypoint shop/old until waypoint shop/waypoint is ready"},
		{func(b *translate.Bound) {
			b.Stage, b.From = translate.Led, types.NamespacedName{Namespace: "shop", Name: "old"}
		}, false, metav1.ConditionFalse, binding.Pending, "waypoint shop/old, and nobody else, is let in besides"},
		{func(b *translate.Bound) { b.Uncaptured = 2 }, true, metav1.ConditionFalse, binding.NotCaptured, "2 of them are not captured"},
		{func(b *translate.Bound) { b.Direct = true }, true, metav1.ConditionTrue, binding.Direct, "others are let in"},
		{func(b *translate.Bound) { b.Reason, b.Problem = binding.NotFound, "there is no Gateway" }, true, metav1.ConditionFalse, binding.NotFound, "there is no Gateway"},
	} {
		c := describeBound(serviceNamed("cart"), boundTo("cart", test.change), test.inForce, metav1.NewTime(time.Unix(1, 0)))
		if c.Status != test.status || c.Reason != test.reason || !strings.Contains(c.Message, test.says) || c.ObservedGeneration != 2 {
			t.Errorf("%s: %+v", test.reason, c)
		}
	}
}

func TestWhetherAWaypointCanDoItsPart(t *testing.T) {
	earlier := metav1.NewTime(time.Unix(1, 0))
	for _, test := range []struct {
		ready, problem string
		status         metav1.ConditionStatus
		says           string
	}{
		{binding.Ready, "", metav1.ConditionTrue, "all of them work with"},
		{binding.NotReady, "", metav1.ConditionFalse, "has no pod that is ready"},
		{binding.NotAcknowledged, "", metav1.ConditionFalse, "not all pods"},
		{binding.NotFound, "there is no Gateway", metav1.ConditionFalse, "there is no Gateway"},
	} {
		b := boundTo("cart", func(b *translate.Bound) { b.Problem = test.problem })
		c, known := describeReady(serviceNamed("cart"), b, test.ready, earlier)
		if !known || c.Type != "ambit.mesh/Ready" || c.Status != test.status || c.Reason != test.ready || !strings.Contains(c.Message, test.says) || c.ObservedGeneration != 2 {
			t.Errorf("%s: %+v", test.ready, c)
		}
		// As long as nobody knows, what was said before stays.
		if kept, known := describeReady(serviceNamed("cart", c), b, "", metav1.NewTime(time.Unix(9, 0))); !known || kept != c {
			t.Errorf("%s is kept as %+v", test.ready, kept)
		}
	}
	if c, known := describeReady(serviceNamed("cart"), boundTo("cart", nil), "", earlier); known {
		t.Errorf("nobody knows, and it says %+v", c)
	}
}

// Only changes are written; what is not bound any more says nothing any more; a
// condition's time is that of its last change.
func TestServicesSayWhatBecameOfTheirBinding(t *testing.T) {
	earlier, now := metav1.NewTime(time.Unix(1, 0)), metav1.NewTime(time.Unix(9, 0))
	right := describeBound(serviceNamed("right"), boundTo("right", nil), true, earlier)
	ready, _ := describeReady(serviceNamed("right"), boundTo("right", nil), binding.Ready, earlier)
	pending := describeBound(serviceNamed("changed"), boundTo("changed", nil), false, earlier)
	services := []*corev1.Service{
		serviceNamed("right", right, ready), serviceNamed("changed", pending), serviceNamed("fresh"), serviceNamed("unbound", right, ready), serviceNamed("leaving", right, ready), serviceNamed("never"),
	}
	client := fake.NewClientset()
	written := map[string][]metav1.Condition{}
	client.PrependReactor("patch", "services", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchAction)
		var s corev1.Service
		if err := json.Unmarshal(patch.GetPatch(), &s); err != nil || patch.GetSubresource() != "status" || string(s.UID) != patch.GetName() {
			t.Errorf("patch of %q %s: %v", patch.GetSubresource(), patch.GetPatch(), err)
		}
		written[patch.GetName()] = s.Status.Conditions
		return true, &s, nil
	})
	r := New(Config{Client: client, InForce: func(*translate.Bound) bool { return true }, Ready: func(*translate.Bound) string { return binding.Ready }})
	bound := []*translate.Bound{boundTo("right", nil), boundTo("changed", nil), boundTo("fresh", nil), {Kind: "Pod", Namespace: "shop", Name: "never", UID: "never"}, boundTo("leaving", func(b *translate.Bound) { b.Leaving = true })}
	if err := r.services(t.Context(), services, bound, now); err != nil {
		t.Fatal(err)
	}
	if c := written["leaving"]; len(written) != 4 || len(written["unbound"]) != 0 || len(c) != 1 || c[0].Reason != binding.Leaving {
		t.Fatalf("written: %+v", written)
	}
	for _, name := range []string{"changed", "fresh"} {
		if c := written[name]; len(c) != 2 || c[1].Reason != binding.Ready || c[0].Reason != binding.InForce || !c[0].LastTransitionTime.Equal(&now) {
			t.Errorf("%s: %+v", name, c)
		}
	}
}
