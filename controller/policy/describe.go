package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/translate"
)

// Reasons of the conditions, besides those of translate.
const (
	reasonAccepted         = "Accepted"
	reasonDryRun           = "DryRun"
	reasonPartlyOverridden = "PartlyOverridden"

	reasonInForce        = "InForce"
	reasonNoCapturedPods = "NoCapturedPods"
	reasonNoWaypoints    = "NoWaypoints"
	reasonPending        = "Pending"
	reasonRefused        = "Refused"
	reasonKeysMissing    = "KeysMissing"
	reasonNotCaptured    = "NotCaptured"
)

const (
	// What a message lists at most: it is read by people, and the API server
	// takes no more than 32 KiB.
	listed      = 10
	wordsLength = 500
)

// progress is how far a policy has come on the nodes that have to enforce it.
type progress struct {
	required int
	inForce  int
	// waiting are the nodes where it is not in force yet, sorted.
	waiting []string
	// capturing counts by node the pods that are to be captured, run and are not, since less than
	// captureGrace; late those since longer. nextLate is when the next of capturing is late, zero if there is none.
	capturing, late map[string]int
	nextLate        time.Time
	// refusals are the words of the nodes that refused it, by node.
	refusals map[string]string
	// troubles are the words of the waypoints that cannot carry it out, by waypoint.
	troubles map[string]string
}

// describe makes before the status that a policy shall have.
func describe(before v1alpha1.PolicyStatus, p *translate.Policy, on progress, now metav1.Time) v1alpha1.PolicyStatus {
	status := *before.DeepCopy()
	status.ObservedGeneration = p.Generation
	status.InForce = fmt.Sprintf("%d/%d", on.inForce, on.required)
	status.Version = p.Version
	status.Workloads = int32(p.Workloads)
	for _, condition := range []metav1.Condition{accepted(p), inForce(p, on)} {
		condition.ObservedGeneration = p.Generation
		condition.LastTransitionTime = now
		meta.SetStatusCondition(&status.Conditions, condition)
	}
	return status
}

// gravity of reasons: the condition has one, that of the worst problem.
var gravity = []translate.Reason{
	translate.Invalid, translate.RequiresWaypoint, translate.TargetNotFound, translate.Overridden, translate.NoRules,
}

func accepted(p *translate.Policy) metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: reasonAccepted,
		Message: fmt.Sprintf("as it is written, for %d pods", p.Workloads),
	}
	if p.DryRun {
		c.Reason = reasonDryRun
		c.Message = fmt.Sprintf("for %d pods: what it would refuse is counted and logged, and let pass", p.Workloads)
	}
	if len(p.Problems) == 0 {
		return c
	}
	problems := slices.Clone(p.Problems)
	slices.SortStableFunc(problems, func(a, b translate.Problem) int {
		return cmp.Compare(slices.Index(gravity, a.Reason), slices.Index(gravity, b.Reason))
	})
	var lines []string
	for i, problem := range problems {
		if i == listed {
			lines = append(lines, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		line := problem.Message
		if problem.Field != "" {
			line = problem.Field + ": " + line
		}
		lines = append(lines, line)
	}
	c.Reason, c.Message = string(problems[0].Reason), strings.Join(lines, "; ")
	switch {
	case problems[0].Reason == translate.NoRules:
	case problems[0].Reason == translate.Overridden && p.Workloads > 0:
		c.Reason = reasonPartlyOverridden
	default:
		c.Status = metav1.ConditionFalse
	}
	return c
}

func inForce(p *translate.Policy, on progress) metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.ConditionInForce, Status: metav1.ConditionTrue, Reason: reasonInForce,
		Message: fmt.Sprintf("on %d of %d %s, version %s", on.inForce, on.required, enforcers(p), p.Version),
	}
	switch {
	case on.required == 0 && p.Kind == translate.RequestAuthentication:
		c.Reason = reasonNoWaypoints
		c.Message = "no waypoint has to enforce it: none stands before what it is for"
	case on.required == 0:
		c.Reason = reasonNoCapturedPods
		c.Message = "no node has to enforce it: no captured pod that it applies to is running"
	case len(on.refusals) > 0:
		c.Status, c.Reason = metav1.ConditionFalse, reasonRefused
		for _, node := range firstFew(on.waiting) {
			if words, ok := on.refusals[node]; ok {
				c.Message += fmt.Sprintf("; node %s refused it: %s", node, shorten(words))
			}
		}
	case len(on.troubles) > 0: // which waypoints have with keys alone
		c.Status, c.Reason = metav1.ConditionFalse, reasonKeysMissing
		for _, waypoint := range firstFew(slices.Sorted(maps.Keys(on.troubles))) {
			c.Message += fmt.Sprintf("; waypoint %s refuses tokens: %s", waypoint, shorten(on.troubles[waypoint]))
		}
	case len(on.late) > 0:
		c.Status, c.Reason = metav1.ConditionFalse, reasonNotCaptured
		c.Message += ofPods(on.late, "run that are to be captured and are not: nothing enforces it for them")
	case on.inForce < on.required:
		c.Status, c.Reason = metav1.ConditionFalse, reasonPending
		c.Message += "; waiting for " + strings.Join(firstFew(on.waiting), ", ")
		if more := len(on.waiting) - listed; more > 0 {
			c.Message += fmt.Sprintf(" and %d more", more)
		}
		c.Message += ofPods(on.capturing, "are being captured: until they are, nothing enforces it for them")
	}
	return c
}

// enforcers are who has to enforce a policy.
func enforcers(p *translate.Policy) string {
	switch {
	case p.Kind == translate.RequestAuthentication:
		return "waypoints"
	case len(p.Waypoints) > 0:
		return "nodes and waypoints"
	}
	return "nodes"
}

// ofPods says something of the pods on some nodes.
func ofPods(byNode map[string]int, says string) (message string) {
	for _, node := range firstFew(slices.Sorted(maps.Keys(byNode))) {
		message += fmt.Sprintf("; on node %s %d pods %s", node, byNode[node], says)
	}
	if more := len(byNode) - listed; more > 0 {
		message += fmt.Sprintf("; and on %d more nodes", more)
	}
	return message
}

func firstFew(nodes []string) []string { return nodes[:min(len(nodes), listed)] }

// shorten keeps a node's words to what a person reads, in whole characters.
func shorten(words string) string {
	if len(words) <= wordsLength {
		return words
	}
	return strings.ToValidUTF8(words[:wordsLength], "") + "..."
}
