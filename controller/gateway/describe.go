package gateway

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwapi "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/binding"
)

// observed is how far a Gateway's waypoint has come.
type observed struct {
	// invalid is why the Gateway is refused; empty if it is not.
	invalid string
	// failed is why its objects could not be applied; empty if they were.
	failed string
	// ready and all are its pods.
	ready, all int
	// addresses of its Service.
	addresses []string
	// bound is how many Services and pods are bound to it, and refusals why some
	// of those that want to be are not.
	bound    int
	refusals []string
}

// check finds what is wrong with a Gateway; empty if nothing is.
func check(g *gwapi.Gateway) string {
	if len(g.Spec.Listeners) != 1 {
		return fmt.Sprintf("spec.listeners: has %d, a waypoint has one: {name: %s, port: %d, protocol: %s}",
			len(g.Spec.Listeners), binding.Listener, binding.Port, binding.Protocol)
	}
	l := g.Spec.Listeners[0]
	var wrong []string
	if l.Port != binding.Port {
		wrong = append(wrong, fmt.Sprintf("spec.listeners[0].port: is %d, must be %d", l.Port, binding.Port))
	}
	if l.Protocol != binding.Protocol {
		wrong = append(wrong, fmt.Sprintf("spec.listeners[0].protocol: is %q, must be %s", l.Protocol, binding.Protocol))
	}
	if l.Hostname != nil && *l.Hostname != "" {
		wrong = append(wrong, "spec.listeners[0].hostname: must be empty: a waypoint is for what is bound to it")
	}
	if l.TLS != nil {
		wrong = append(wrong, "spec.listeners[0].tls: must be empty: a waypoint has the mesh's certificates")
	}
	if _, known := binding.ScopeOf(g); !known {
		wrong = append(wrong, "metadata.labels[ambit.mesh/waypoint-for]: is none of service, workload, all, none")
	}
	if _, err := replicasOf(g); err != nil {
		wrong = append(wrong, err.Error())
	}
	if _, err := tracingOf(g); err != nil {
		wrong = append(wrong, err.Error())
	}
	if _, err := logFormatOf(g, ""); err != nil {
		wrong = append(wrong, err.Error())
	}
	return strings.Join(wrong, "; ")
}

// describe makes of a status the one that a Gateway shall have.
func describe(g *gwapi.Gateway, o observed, now metav1.Time) gwapi.GatewayStatus {
	status := *g.Status.DeepCopy()
	accepted := metav1.Condition{Type: string(gwapi.GatewayConditionAccepted), Status: metav1.ConditionTrue, Reason: string(gwapi.GatewayReasonAccepted)}
	programmed := metav1.Condition{Type: string(gwapi.GatewayConditionProgrammed), Status: metav1.ConditionTrue, Reason: string(gwapi.GatewayReasonProgrammed),
		Message: fmt.Sprintf("%d of %d pods are ready", o.ready, o.all)}
	switch {
	case o.invalid != "":
		accepted.Status, accepted.Reason, accepted.Message = metav1.ConditionFalse, string(gwapi.GatewayReasonListenersNotValid), o.invalid
		programmed.Status, programmed.Reason, programmed.Message = metav1.ConditionFalse, string(gwapi.GatewayReasonInvalid), "it is not accepted"
	case o.failed != "":
		programmed.Status, programmed.Reason, programmed.Message = metav1.ConditionFalse, string(gwapi.GatewayReasonPending), o.failed
	case o.ready == 0:
		programmed.Status, programmed.Reason = metav1.ConditionFalse, string(gwapi.GatewayReasonPending)
		programmed.Message += ": connections to what is bound to it are refused"
	}
	bound := metav1.Condition{Type: binding.Condition, Status: metav1.ConditionTrue, Reason: "Bound", Message: fmt.Sprintf("%d Services and pods", o.bound)}
	switch {
	case len(o.refusals) > 0:
		bound.Status, bound.Reason = metav1.ConditionFalse, "Refused"
		bound.Message += ", but: " + strings.Join(o.refusals[:min(len(o.refusals), listed)], "; ")
		if more := len(o.refusals) - listed; more > 0 {
			bound.Message += fmt.Sprintf("; and %d more", more)
		}
	case o.bound == 0:
		bound.Status, bound.Reason = metav1.ConditionFalse, "NothingBound"
		bound.Message = "label a namespace, a Service or a pod with ambit.mesh/use-waypoint=" + g.Name
	}
	set := func(conditions *[]metav1.Condition, c metav1.Condition) {
		c.ObservedGeneration, c.LastTransitionTime = g.Generation, now
		meta.SetStatusCondition(conditions, c)
	}
	for _, c := range []metav1.Condition{accepted, programmed, bound} {
		set(&status.Conditions, c)
	}
	status.Addresses = nil
	for _, address := range o.addresses {
		kind := gwapi.IPAddressType
		status.Addresses = append(status.Addresses, gwapi.GatewayStatusAddress{Type: &kind, Value: address})
	}
	status.Listeners = describeListeners(g, accepted, programmed, set)
	return status
}

// listed is how many refusals a message spells out.
const listed = 5

func describeListeners(g *gwapi.Gateway, accepted, programmed metav1.Condition, set func(*[]metav1.Condition, metav1.Condition)) []gwapi.ListenerStatus {
	var all []gwapi.ListenerStatus
	for _, l := range g.Spec.Listeners {
		status := gwapi.ListenerStatus{Name: l.Name, SupportedKinds: []gwapi.RouteGroupKind{}}
		for _, old := range g.Status.Listeners {
			if old.Name == l.Name {
				status.Conditions = old.DeepCopy().Conditions
			}
		}
		ok := metav1.Condition{Type: string(gwapi.ListenerConditionResolvedRefs), Status: metav1.ConditionTrue, Reason: string(gwapi.ListenerReasonResolvedRefs)}
		taken := metav1.Condition{Type: string(gwapi.ListenerConditionAccepted), Status: accepted.Status, Reason: string(gwapi.ListenerReasonAccepted), Message: accepted.Message}
		if accepted.Status != metav1.ConditionTrue {
			taken.Reason = string(gwapi.ListenerReasonUnsupportedProtocol)
		}
		running := metav1.Condition{Type: string(gwapi.ListenerConditionProgrammed), Status: programmed.Status, Reason: programmed.Reason}
		for _, c := range []metav1.Condition{taken, running, ok} {
			set(&status.Conditions, c)
		}
		all = append(all, status)
	}
	return all
}
