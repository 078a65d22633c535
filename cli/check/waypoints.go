package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/waypoint"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// askGatewayAPI finds labels that name waypoints where the cluster can have none.
func askGatewayAPI(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	uses, err := waypoint.Uses(ctx, cluster)
	if !errors.Is(err, waypoint.ErrNoGatewayAPI) {
		return nil, err
	}
	if len(uses) == 0 {
		return nil, nil // nobody wants it
	}
	object := uses[0].Object()
	if more := len(uses) - 1; more > 0 {
		object += fmt.Sprintf(" and %d more", more)
	}
	return []Finding{{
		Level: Error, Object: object,
		Reason: fmt.Sprintf("label %s names a waypoint, and the cluster does not know Gateways: connections are refused", binding.Label),
		Next:   err.Error(),
	}}, nil
}

// askWaypointLabels finds labels that name a waypoint that is not there, or not for them.
func askWaypointLabels(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	uses, err := waypoint.Uses(ctx, cluster)
	if errors.Is(err, waypoint.ErrNoGatewayAPI) {
		return nil, nil // askGatewayAPI tells
	}
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, u := range uses {
		switch u.Problem {
		case binding.NotFound:
			findings = append(findings, Finding{
				Level: Error, Object: u.Object(),
				Reason: fmt.Sprintf("label %s names waypoint %s, which does not exist: connections are refused", binding.Label, u.Waypoint),
				Next:   fmt.Sprintf("ambit waypoint apply -n %s --name %s, or mend the label", u.Waypoint.Namespace, u.Waypoint.Name),
			})
		case binding.NotAllowed:
			findings = append(findings, Finding{
				Level: Error, Object: u.Object(),
				Reason: fmt.Sprintf("label %s names waypoint %s, whose listener does not allow this namespace: connections are refused", binding.Label, u.Waypoint),
				Next:   fmt.Sprintf("ambit waypoint apply -n %s --name %s --allow-namespaces all, or its spec.listeners[0].allowedRoutes.namespaces with a selector", u.Waypoint.Namespace, u.Waypoint.Name),
			})
		}
	}
	return findings, nil
}

// askWaypoints finds waypoints that have nobody who could answer.
func askWaypoints(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	views, err := waypoint.List(ctx, cluster, "")
	if errors.Is(err, waypoint.ErrNoGatewayAPI) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, v := range views {
		if f, bad := judgeWaypoint(v, time.Now()); bad {
			findings = append(findings, f)
		}
	}
	return findings, nil
}

func judgeWaypoint(v *waypoint.View, now time.Time) (Finding, bool) {
	f := Finding{
		Level: Warning, Object: "Gateway " + v.Namespace + "/" + v.Name,
		Next: fmt.Sprintf("kubectl -n %s get pods -l %s=%s", v.Namespace, binding.GatewayLabel, v.Name),
	}
	if len(v.Bound) > 0 {
		f.Level = Error
	}
	accepted := meta.FindStatusCondition(v.Conditions, string(gateway.GatewayConditionAccepted))
	programmed := meta.FindStatusCondition(v.Conditions, string(gateway.GatewayConditionProgrammed))
	switch {
	case accepted == nil, programmed == nil, accepted.Status == metav1.ConditionUnknown:
		if now.Sub(v.Created) < policyPatience {
			return f, false
		}
		f.Reason, f.Next = "no controller has said anything of it", "kubectl -n ambit-system logs deployment/controller"
	case accepted.Status != metav1.ConditionTrue:
		f.Reason, f.Next = "it is not accepted: "+accepted.Message, "mend the field that is named"
	case programmed.Status != metav1.ConditionTrue:
		f.Reason = "it is not programmed: " + programmed.Message
	default:
		return f, false
	}
	return f, true
}

// routeKinds are the kinds of routes that may be attached to Services.
var routeKinds = []struct{ kind, plural string }{
	{"HTTPRoute", "httproutes"}, {"GRPCRoute", "grpcroutes"}, {"TCPRoute", "tcproutes"}, {"TLSRoute", "tlsroutes"},
}

// routeObject is what all kinds have in common.
type routeObject struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              gateway.CommonRouteSpec `json:"spec"`
	Status            gateway.RouteStatus     `json:"status"`
}

// routeController is what Ambit is called in the status of routes.
const routeController gateway.GatewayController = "ambit.mesh/waypoint"

// askRoutes finds routes attached to Services that are not carried out as they are written.
func askRoutes(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	var findings []Finding
	for _, k := range routeKinds {
		list, err := cluster.Dynamic.Resource(gateway.SchemeGroupVersion.WithResource(k.plural)).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			continue // a cluster without them has no routes of that kind
		}
		if err != nil {
			return nil, fmt.Errorf("list %s.gateway.networking.k8s.io: %w", k.plural, err)
		}
		for i := range list.Items {
			var r routeObject
			if err := decodeObject(&list.Items[i], &r); err != nil {
				return nil, err
			}
			for j, parent := range r.Spec.ParentRefs {
				if parent.Kind == nil || *parent.Kind != "Service" || parent.Group == nil || *parent.Group != "" && *parent.Group != "core" {
					continue
				}
				findings = append(findings, judgeRoute(k.kind, k.plural, r, j, time.Now())...)
			}
		}
	}
	return findings, nil
}

// judgeRoute by what its status says of one parent.
func judgeRoute(kind, plural string, r routeObject, parent int, now time.Time) (findings []Finding) {
	ref := r.Spec.ParentRefs[parent]
	namespace := r.Namespace
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	at := fmt.Sprintf("at Service %s/%s", namespace, ref.Name)
	find := func(level Level, reason, next string) {
		findings = append(findings, Finding{Level: level, Object: kind + " " + r.Namespace + "/" + r.Name, Reason: at + " " + reason, Next: next})
	}
	describe := fmt.Sprintf("kubectl -n %s describe %s.gateway.networking.k8s.io %s", r.Namespace, plural, r.Name)
	var ours *gateway.RouteParentStatus
	for i, p := range r.Status.Parents {
		switch {
		case p.ParentRef.Name != ref.Name || !sameRef(p.ParentRef, ref):
		case p.ControllerName == routeController:
			ours = &r.Status.Parents[i]
		case meta.IsStatusConditionTrue(p.Conditions, string(gateway.RouteConditionAccepted)):
			return nil // another mesh carries it out
		}
	}
	var accepted *metav1.Condition
	if ours != nil {
		accepted = meta.FindStatusCondition(ours.Conditions, string(gateway.RouteConditionAccepted))
	}
	switch {
	case accepted == nil || accepted.ObservedGeneration < r.Generation:
		if now.Sub(r.CreationTimestamp.Time) > policyPatience {
			find(Error, "nobody has said anything of its latest version", "kubectl -n ambit-system logs deployment/controller")
		}
		return findings
	case accepted.Status != metav1.ConditionTrue && accepted.Reason == "NoWaypoint":
		find(Error, "nothing of it is carried out: no waypoint stands before it",
			fmt.Sprintf("ambit waypoint apply -n %s, and kubectl -n %s label service %s %s=%s", namespace, namespace, ref.Name, binding.Label, waypoint.DefaultName))
		return findings
	case accepted.Status != metav1.ConditionTrue:
		find(Error, "it is not accepted: "+accepted.Reason+": "+accepted.Message, describe)
	}
	for _, c := range ours.Conditions {
		switch {
		case c.Type == string(gateway.RouteConditionResolvedRefs) && c.Status != metav1.ConditionTrue,
			c.Type == string(gateway.RouteConditionPartiallyInvalid) && c.Status == metav1.ConditionTrue:
			find(Warning, "not all of it is carried out: "+c.Reason+": "+c.Message, describe)
		}
	}
	return findings
}

func sameRef(a, b gateway.ParentReference) bool {
	value := func(s *gateway.SectionName) gateway.SectionName { return *cmp.Or(s, new(gateway.SectionName)) }
	return value(a.SectionName) == value(b.SectionName) && *cmp.Or(a.Port, new(gateway.PortNumber)) == *cmp.Or(b.Port, new(gateway.PortNumber)) &&
		*cmp.Or(a.Namespace, new(gateway.Namespace)) == *cmp.Or(b.Namespace, new(gateway.Namespace))
}

// askBindings finds what is bound to a waypoint, and not in force; and who uses a port that is.
func askBindings(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	services, err := cluster.Typed.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, s := range services.Items {
		c := meta.FindStatusCondition(s.Status.Conditions, binding.Condition)
		if c == nil {
			continue
		}
		find := func(level Level, next string) {
			findings = append(findings, Finding{Level: level, Object: "Service " + s.Namespace + "/" + s.Name, Reason: c.Message, Next: next})
		}
		switch {
		case c.Reason == binding.PortConflict:
			find(Error, fmt.Sprintf("kubectl -n %s label service %s %s=NAME, or another targetPort", s.Namespace, s.Name, binding.Label))
		case c.Reason == binding.NotCaptured:
			find(Warning, "have its pods in the mesh: kubectl label namespace NAMESPACE "+modeLabel+"=ambient; endpoints that are no pods of the mesh have to be protected otherwise")
		case c.Reason == binding.Pending && time.Since(c.LastTransitionTime.Time) > policyPatience:
			find(Warning, "see that ztunnel is connected on every node: AMB005")
		}
		if c = meta.FindStatusCondition(s.Status.Conditions, binding.ReadyCondition); c != nil && c.Reason == binding.NotAcknowledged && time.Since(c.LastTransitionTime.Time) > policyPatience {
			find(Warning, "ambit waypoint list, and the logs of the waypoint's pods")
		}
	}
	return findings, nil
}
