package check

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
)

func TestPoliciesThatAreNotInForce(t *testing.T) {
	long := metav1.NewTime(time.Now().Add(-time.Hour))
	condition := func(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: long}
	}
	good := condition("Accepted", metav1.ConditionTrue, "Accepted", "as it is written")
	everywhere := condition("InForce", metav1.ConditionTrue, "InForce", "on 3 of 3 nodes")
	just := condition("InForce", metav1.ConditionFalse, "Pending", "on 1 of 3 nodes; waiting for n2")
	just.LastTransitionTime = metav1.Now()
	for name, test := range map[string]struct {
		generation, observed int64
		created              metav1.Time
		conditions           []metav1.Condition
		want                 []string
	}{
		"well":                  {2, 2, long, []metav1.Condition{good, everywhere}, nil},
		"on trial":              {1, 1, long, []metav1.Condition{condition("Accepted", metav1.ConditionTrue, "DryRun", ""), everywhere}, nil},
		"just made":             {1, 0, metav1.Now(), nil, nil},
		"nobody looked":         {1, 0, long, nil, []string{"error|EgressPolicy shop/out|no controller has said anything"}},
		"nobody looked again":   {2, 1, long, []metav1.Condition{good, everywhere}, []string{"error|no controller has said anything"}},
		"not enforced as it is": {1, 1, long, []metav1.Condition{condition("Accepted", metav1.ConditionFalse, "RequiresWaypoint", "spec.x: no waypoint"), everywhere}, []string{"warning|RequiresWaypoint: spec.x|describe egresspolicies.ambit.mesh out"}},
		"malformed":             {1, 1, long, []metav1.Condition{condition("Accepted", metav1.ConditionFalse, "Invalid", "spec.x: bad"), everywhere}, []string{"error|stricter reading|spec.x: bad"}},
		"does nothing":          {1, 1, long, []metav1.Condition{condition("Accepted", metav1.ConditionTrue, "NoRules", "spec.rules: is empty"), everywhere}, []string{"warning|spec.rules: is empty"}},
		"on its way":            {1, 1, long, []metav1.Condition{good, just}, nil},
		"long on its way":       {1, 1, long, []metav1.Condition{good, condition("InForce", metav1.ConditionFalse, "Pending", "waiting for n2")}, []string{"error|waiting for n2|ztunnel"}},
		"refused":               {1, 1, metav1.Now(), []metav1.Condition{good, condition("InForce", metav1.ConditionFalse, "Refused", "node n1 refused it")}, []string{"error|node n1 refused it"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &v1alpha1.EgressPolicy{
				TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "EgressPolicy"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "out", Generation: test.generation, CreationTimestamp: test.created},
				Status:     v1alpha1.PolicyStatus{ObservedGeneration: test.observed, Conditions: test.conditions},
			}
			object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
			if err != nil {
				t.Fatal(err)
			}
			kinds := make(map[schema.GroupVersionResource]string)
			for _, k := range policyKinds {
				kinds[v1alpha1.GroupVersion.WithResource(k.plural)] = k.kind + "List"
			}
			cluster := &kube.Cluster{Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(
				runtime.NewScheme(), kinds, &unstructured.Unstructured{Object: object})}
			findings, err := askEnforcement(t.Context(), cluster)
			wantFindings(t, findings, err, test.want...)
		})
	}
}
