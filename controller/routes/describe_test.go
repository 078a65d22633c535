package routes

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/translate"
)

const (
	us   gateway.GatewayController = "ambit.mesh/waypoint"
	them gateway.GatewayController = "example.com/gateway"
)

var (
	earlier = metav1.NewTime(time.Unix(1000, 0))
	now     = metav1.NewTime(time.Unix(2000, 0))
)

func ref(name string) gateway.ParentReference {
	return gateway.ParentReference{Name: gateway.ObjectName(name)}
}

func accepted(status metav1.ConditionStatus, generation int64, at metav1.Time) metav1.Condition {
	return metav1.Condition{Type: "Accepted", Status: status, Reason: "R", ObservedGeneration: generation, LastTransitionTime: at}
}

func entry(name string, by gateway.GatewayController, conditions ...metav1.Condition) gateway.RouteParentStatus {
	return gateway.RouteParentStatus{ParentRef: ref(name), ControllerName: by, Conditions: conditions}
}

func TestDescribe(t *testing.T) {
	yes := metav1.Condition{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "R"}
	theirs, theirOther := entry("gw", them, accepted("True", 1, earlier)), entry("cart", them, accepted("False", 1, earlier))
	tests := []struct {
		name    string
		before  []gateway.RouteParentStatus
		parents []translate.RouteParent
		want    []gateway.RouteParentStatus
	}{
		{"nothing yet", nil,
			[]translate.RouteParent{{Ref: ref("cart"), Conditions: []metav1.Condition{yes}}},
			[]gateway.RouteParentStatus{entry("cart", us, accepted("True", 7, now))}},
		{"others' entries stay where they are, ours too",
			[]gateway.RouteParentStatus{theirs, entry("cart", us, accepted("False", 6, earlier)), theirOther},
			[]translate.RouteParent{{Ref: ref("cart"), Conditions: []metav1.Condition{yes}}},
			[]gateway.RouteParentStatus{theirs, entry("cart", us, accepted("True", 7, now)), theirOther}},
		{"the time is that of the last change of a condition",
			[]gateway.RouteParentStatus{entry("cart", us, accepted("True", 6, earlier))},
			[]translate.RouteParent{{Ref: ref("cart"), Conditions: []metav1.Condition{yes}}},
			[]gateway.RouteParentStatus{entry("cart", us, accepted("True", 7, earlier))}},
		{"what is not said any more goes",
			[]gateway.RouteParentStatus{entry("cart", us, accepted("True", 6, earlier), metav1.Condition{Type: "PartiallyInvalid", Status: "True"})},
			[]translate.RouteParent{{Ref: ref("cart"), Conditions: []metav1.Condition{yes}}},
			[]gateway.RouteParentStatus{entry("cart", us, accepted("True", 7, earlier))}},
		{"a parent that is not named any more goes",
			[]gateway.RouteParentStatus{theirs, entry("old", us, accepted("True", 6, earlier))},
			[]translate.RouteParent{{Ref: ref("cart"), Conditions: []metav1.Condition{yes}}},
			[]gateway.RouteParentStatus{theirs, entry("cart", us, accepted("True", 7, now))}},
		{"no parent is ours any more",
			[]gateway.RouteParentStatus{entry("old", us)}, nil, []gateway.RouteParentStatus{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := gateway.RouteStatus{Parents: test.before}
			untouched := *before.DeepCopy()
			got := describe(before, us, &translate.Route{Generation: 7, Parents: test.parents}, now)
			if diff := cmp.Diff(test.want, got.Parents); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(untouched, before); diff != "" {
				t.Errorf("what was there is changed:\n%s", diff)
			}
			if diff := cmp.Diff(got, describe(got, us, &translate.Route{Generation: 7, Parents: test.parents}, metav1.NewTime(time.Unix(3000, 0)))); diff != "" {
				t.Errorf("once more gives something else:\n%s", diff)
			}
		})
	}
}
