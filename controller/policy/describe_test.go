package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/translate"
)

var noon = metav1.NewTime(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC))

func problem(reason translate.Reason, field, message string) translate.Problem {
	return translate.Problem{Reason: reason, Field: field, Message: message}
}

func TestAccepted(t *testing.T) {
	for name, test := range map[string]struct {
		policy  translate.Policy
		status  metav1.ConditionStatus
		reason  string
		message string
	}{
		"nothing to say": {translate.Policy{Workloads: 3}, metav1.ConditionTrue, "Accepted", "as it is written, for 3 pods"},
		"a dry run":      {translate.Policy{DryRun: true, Workloads: 3}, metav1.ConditionTrue, "DryRun", "for 3 pods: what it would refuse is counted and logged, and let pass"},
		"a malformed field": {
			translate.Policy{Problems: []translate.Problem{problem(translate.Invalid, "spec.rules[0].to[0].operation.ports[0]", `"http" is no port`)}},
			metav1.ConditionFalse, "Invalid", `spec.rules[0].to[0].operation.ports[0]: "http" is no port`,
		},
		"the gravest first": {
			translate.Policy{Problems: []translate.Problem{
				problem(translate.NoRules, "spec.rules", "is empty"), problem(translate.RequiresWaypoint, "spec.a", "no waypoint"), problem(translate.Invalid, "spec.b", "bad")}},
			metav1.ConditionFalse, "Invalid", "spec.b: bad; spec.a: no waypoint; spec.rules: is empty",
		},
		"overridden": {
			translate.Policy{Problems: []translate.Problem{problem(translate.Overridden, "", "shop/a is older")}},
			metav1.ConditionFalse, "Overridden", "shop/a is older",
		},
		"overridden for some": {
			translate.Policy{Workloads: 1, Problems: []translate.Problem{problem(translate.Overridden, "", "shop/a is older")}},
			metav1.ConditionTrue, "PartlyOverridden", "shop/a is older",
		},
		"no rules": {
			translate.Policy{Problems: []translate.Problem{problem(translate.NoRules, "spec.rules", "is empty")}},
			metav1.ConditionTrue, "NoRules", "spec.rules: is empty",
		},
	} {
		got := accepted(&test.policy)
		if got.Status != test.status || got.Reason != test.reason || got.Message != test.message {
			t.Errorf("%s: %s %s %q", name, got.Status, got.Reason, got.Message)
		}
	}
}

func TestInForce(t *testing.T) {
	policy := &translate.Policy{Version: "abc"}
	var many, captureless []string
	everywhere := make(map[string]int)
	for i := range 12 {
		node := fmt.Sprintf("n%02d", i)
		many, everywhere[node] = append(many, node), 1
		if i < listed {
			captureless = append(captureless, "; on node "+node+" 1 pods run that are to be captured and are not: nothing enforces it for them")
		}
	}
	for name, test := range map[string]struct {
		on      progress
		status  metav1.ConditionStatus
		reason  string
		message string
	}{
		"uncaptured": {progress{required: 3, inForce: 1, waiting: []string{"n1", "n2"}, capturing: map[string]int{"n1": 1}, late: map[string]int{"n2": 3}}, metav1.ConditionFalse, "NotCaptured",
			"on 1 of 3 nodes, version abc; on node n2 3 pods run that are to be captured and are not: nothing enforces it for them"},
		"being captured": {progress{required: 3, inForce: 1, waiting: []string{"n1", "n2"}, capturing: map[string]int{"n2": 3}}, metav1.ConditionFalse, "Pending",
			"on 1 of 3 nodes, version abc; waiting for n1, n2; on node n2 3 pods are being captured: until they are, nothing enforces it for them"},
		"uncaptured on many nodes": {progress{required: 12, waiting: many, late: everywhere}, metav1.ConditionFalse, "NotCaptured",
			"on 0 of 12 nodes, version abc" + strings.Join(captureless, "") + "; and on 2 more nodes"},
		"uncaptured, and refused": {progress{required: 2, inForce: 1, waiting: []string{"n2"}, late: map[string]int{"n2": 3}, refusals: map[string]string{"n2": "rules[0]: too long"}},
			metav1.ConditionFalse, "Refused", "on 1 of 2 nodes, version abc; node n2 refused it: rules[0]: too long"},
		"everywhere": {progress{required: 3, inForce: 3}, metav1.ConditionTrue, "InForce", "on 3 of 3 nodes, version abc"},
		"nowhere to be": {progress{}, metav1.ConditionTrue, "NoCapturedPods",
			"no node has to enforce it: no captured pod that it applies to is running"},
		"on the way": {progress{required: 3, inForce: 1, waiting: []string{"n1", "n2"}}, metav1.ConditionFalse, "Pending",
			"on 1 of 3 nodes, version abc; waiting for n1, n2"},
		"on a long way": {progress{required: 12, waiting: many}, metav1.ConditionFalse, "Pending",
			"on 0 of 12 nodes, version abc; waiting for n00, n01, n02, n03, n04, n05, n06, n07, n08, n09 and 2 more"},
		"refused": {progress{required: 2, inForce: 1, waiting: []string{"n2"}, refusals: map[string]string{"n2": "rules[0]: too long"}},
			metav1.ConditionFalse, "Refused", "on 1 of 2 nodes, version abc; node n2 refused it: rules[0]: too long"},
	} {
		got := inForce(policy, test.on)
		if got.Status != test.status || got.Reason != test.reason || got.Message != test.message {
			t.Errorf("%s: %s %s %q", name, got.Status, got.Reason, got.Message)
		}
	}
}

// What others say of the policy stays, and a condition keeps its time unless it
// changes.
func TestDescribeKeepsWhatIsNotOurs(t *testing.T) {
	foreign := metav1.Condition{Type: "example.com/Audited", Status: metav1.ConditionTrue, Reason: "Yes", LastTransitionTime: noon}
	p := &translate.Policy{Generation: 4, Version: "abc", Workloads: 5}
	first := describe(v1alpha1.PolicyStatus{Conditions: []metav1.Condition{foreign}}, p, progress{required: 2, waiting: []string{"n1", "n2"}}, noon)
	later := metav1.NewTime(noon.Add(time.Hour))
	second := describe(first, p, progress{required: 2, inForce: 1, waiting: []string{"n2"}}, later)
	third := describe(second, p, progress{required: 2, inForce: 2}, later)

	if got := meta.FindStatusCondition(third.Conditions, foreign.Type); got == nil || *got != foreign {
		t.Errorf("what is not ours became %v", got)
	}
	if second.InForce != "1/2" || meta.FindStatusCondition(second.Conditions, "InForce").LastTransitionTime != noon {
		t.Errorf("while it is pending, it became %+v", second)
	}
	if c := meta.FindStatusCondition(third.Conditions, "InForce"); c.LastTransitionTime != later || c.ObservedGeneration != 4 {
		t.Errorf("when it is in force, its condition is %+v", c)
	}
	if third.ObservedGeneration != 4 || third.Version != "abc" || third.Workloads != 5 || third.InForce != "2/2" {
		t.Errorf("got %+v", third)
	}
	if len(first.Conditions) != 3 || first.InForce != "0/2" {
		t.Errorf("an earlier status changed to %+v", first)
	}
}

// However long the words of nodes and the list of problems, the API server takes it.
func TestMessagesAreBounded(t *testing.T) {
	const limit = 32 << 10
	p := &translate.Policy{Version: "abc"}
	on := progress{required: 1000, refusals: make(map[string]string)}
	for i := range 1000 {
		p.Problems = append(p.Problems, problem(translate.Invalid, fmt.Sprintf("spec.rules[%d]", i), "bad"))
		node := fmt.Sprint("node-", i)
		on.waiting = append(on.waiting, node)
		on.refusals[node] = strings.Repeat("ü", 10_000)
	}
	for _, c := range describe(v1alpha1.PolicyStatus{}, p, on, noon).Conditions {
		if len(c.Message) > limit || strings.ToValidUTF8(c.Message, "") != c.Message {
			t.Errorf("%s has a message of %d bytes", c.Type, len(c.Message))
		}
	}
}
