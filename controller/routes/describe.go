package routes

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/translate"
)

// maxParents is how many entries the API takes.
const maxParents = 32

// describe makes of a status the one that a route shall have. Our entries are
// those of parents that are still named, in the route's order, where the first of
// them stood; those of others keep their order.
func describe(before gateway.RouteStatus, controller gateway.GatewayController, r *translate.Route, now metav1.Time) gateway.RouteStatus {
	var after gateway.RouteStatus
	place := -1
	for _, entry := range before.Parents {
		if entry.ControllerName == controller {
			if place < 0 {
				place = len(after.Parents)
			}
			continue
		}
		after.Parents = append(after.Parents, *entry.DeepCopy())
	}
	if place < 0 {
		place = len(after.Parents)
	}
	var ours []gateway.RouteParentStatus
	for _, parent := range r.Parents {
		ours = append(ours, describeParent(before, controller, parent, r.Generation, now))
	}
	after.Parents = slices.Insert(after.Parents, place, ours...)
	if len(after.Parents) > maxParents {
		after.Parents = after.Parents[:maxParents]
	}
	if after.Parents == nil {
		after.Parents = []gateway.RouteParentStatus{} // required, and may be empty
	}
	return after
}

func describeParent(before gateway.RouteStatus, controller gateway.GatewayController, parent translate.RouteParent, generation int64, now metav1.Time) gateway.RouteParentStatus {
	entry := gateway.RouteParentStatus{ParentRef: parent.Ref, ControllerName: controller}
	for _, old := range before.Parents {
		if old.ControllerName == controller && equality.Semantic.DeepEqual(old.ParentRef, parent.Ref) {
			entry.Conditions = old.DeepCopy().Conditions
			break
		}
	}
	entry.Conditions = slices.DeleteFunc(entry.Conditions, func(c metav1.Condition) bool {
		return !slices.ContainsFunc(parent.Conditions, func(wanted metav1.Condition) bool { return wanted.Type == c.Type })
	})
	for _, condition := range parent.Conditions {
		condition.ObservedGeneration, condition.LastTransitionTime = generation, now
		meta.SetStatusCondition(&entry.Conditions, condition)
	}
	return entry
}
