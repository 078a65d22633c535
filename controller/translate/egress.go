package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// egress is an EgressPolicy that takes part.
type egress struct {
	outcome  *Policy
	level    level
	selector *v1alpha1.WorkloadSelector
	deny     bool
	// lost counts the pods for which one that is as specific denies, by that one's name.
	lost map[string]int
}

// denialSources are the EgressPolicies, oldest first.
type denialSources struct {
	system      string
	byNamespace map[string][]*egress
}

// egressPolicies publishes them, and says on each workload which of them decide.
func (o *output) egressPolicies(all []*v1alpha1.EgressPolicy, t *targets) *denialSources {
	sources := &denialSources{system: t.system, byNamespace: make(map[string][]*egress)}
	for _, object := range oldestFirst(all) {
		e := &egress{
			outcome: newPolicy(EgressPolicy, object), selector: object.Spec.Selector,
			level: t.level(object.Namespace, object.Spec.Selector), lost: make(map[string]int),
		}
		message := e.read(object)
		e.deny = message.Action == mesh.EgressPolicy_DENY
		sources.byNamespace[object.Namespace] = append(sources.byNamespace[object.Namespace], e)
		r, err := resource.New(e.outcome.key(), message, resource.Relations{})
		o.publishPolicy(e.outcome, e.outcome.key(), r, err)
	}
	if len(all) == 0 {
		return sources
	}
	for _, p := range t.all {
		sources.decide(p, t)
	}
	for _, ofNamespace := range sources.byNamespace {
		for _, e := range ofNamespace {
			for _, winner := range slices.Sorted(maps.Keys(e.lost)) {
				e.outcome.say(Overridden, "spec.action", fmt.Sprintf("%s is as specific and denies: it decides for %d pods", winner, e.lost[winner]))
			}
		}
	}
	return sources
}

// decide attaches to a pod's workload the most specific policies that are in
// force: those that deny, if any does. A dry run never decides in place of one
// that is enforced; it is attached unless something more specific is.
func (s *denialSources) decide(p *pod, t *targets) {
	var applying []*egress
	candidates := s.byNamespace[p.Namespace]
	if p.Namespace != s.system {
		candidates = slices.Concat(candidates, s.byNamespace[s.system])
	}
	top, denies := level(-1), false
	for _, e := range candidates {
		if selects(e.selector) && !matches(e.selector, p.Labels) {
			continue
		}
		applying = append(applying, e)
		if e.outcome.DryRun || e.level < top {
			continue
		}
		denies = e.deny || denies && e.level == top
		top = e.level
	}
	var decides []*egress
	for _, e := range applying {
		if e.level >= top && (e.outcome.DryRun || e.deny == denies) {
			decides = append(decides, e)
		}
	}
	for _, e := range applying {
		if slices.Contains(decides, e) {
			a := t.of(p)
			a.egress = append(a.egress, e.outcome.key())
			t.enforce(e.outcome, p, true)
			continue
		}
		for _, winner := range decides {
			if !winner.outcome.DryRun && winner.level == e.level {
				e.lost[winner.outcome.key()]++
			}
		}
	}
}

// mayDeny tells whether a pod of a namespace that nobody knows yet may turn out
// to be denied its way out.
func (s *denialSources) mayDeny(namespace string) bool {
	candidates := s.byNamespace[namespace]
	if namespace != s.system {
		candidates = slices.Concat(candidates, s.byNamespace[s.system])
	}
	return slices.ContainsFunc(candidates, func(e *egress) bool { return e.deny && !e.outcome.DryRun })
}

// read what a policy says. What means nothing excepts nothing.
func (e *egress) read(object *v1alpha1.EgressPolicy) *mesh.EgressPolicy {
	message := &mesh.EgressPolicy{
		Name: object.Name, Namespace: object.Namespace, Action: mesh.EgressPolicy_DENY, DryRun: e.outcome.DryRun,
	}
	if len(object.Unread) > 0 {
		e.outcome.unread(object.Unread, "it is Deny, without exceptions")
		e.level = unreadLevel
		return message
	}
	switch object.Spec.Action {
	case v1alpha1.EgressAllow:
		message.Action = mesh.EgressPolicy_ALLOW
		if len(object.Spec.Exceptions) > 0 {
			e.outcome.say(Invalid, "spec.exceptions", "are for Deny: nothing is refused")
		}
		return message
	case v1alpha1.EgressDeny:
	default:
		e.outcome.say(Invalid, "spec.action", fmt.Sprintf("%q is not known: it is Deny", object.Spec.Action))
	}
	for i, exception := range object.Spec.Exceptions {
		field := fmt.Sprintf("spec.exceptions[%d]", i)
		wire, problem := wireException(exception)
		if problem.Message != "" {
			e.outcome.say(Invalid, field+problem.Field, problem.Message+": it excepts nothing")
			continue
		}
		message.Exceptions = append(message.Exceptions, wire)
	}
	return message
}

// wireException returns a problem, with a field relative to the exception, for
// what means nothing.
func wireException(in v1alpha1.EgressException) (*mesh.EgressException, Problem) {
	out := &mesh.EgressException{}
	switch {
	case in.CIDR != "" && in.DNSName != "":
		return nil, Problem{Field: ".dnsName", Message: "a destination is either a cidr or a dnsName"}
	case in.CIDR != "":
		prefix, err := netip.ParsePrefix(in.CIDR)
		if err != nil || prefix.Addr().Is4In6() {
			return nil, Problem{Field: ".cidr", Message: fmt.Sprintf("%q is no CIDR", in.CIDR)}
		}
		out.Destination = &mesh.EgressException_Cidr{Cidr: prefix.Masked().String()}
	case in.DNSName != "":
		if !isDNSName(in.DNSName) {
			return nil, Problem{Field: ".dnsName", Message: fmt.Sprintf("%q is no name", in.DNSName)}
		}
		out.Destination = &mesh.EgressException_DnsName{DnsName: in.DNSName}
	case len(in.Ports) == 0:
		return nil, Problem{Message: "has neither a destination nor ports"}
	}
	for i, p := range in.Ports {
		port, ok := wireEgressPort(p)
		if !ok {
			return nil, Problem{Field: fmt.Sprintf(".ports[%d]", i), Message: "is no port or range of ports"}
		}
		out.Ports = append(out.Ports, port)
	}
	return out, Problem{}
}

func wireEgressPort(in v1alpha1.EgressPort) (*mesh.EgressPort, bool) {
	out := &mesh.EgressPort{Port: uint32(in.Port)}
	switch in.Protocol {
	case v1alpha1.EgressTCP, "":
		out.Protocol = mesh.EgressPort_TCP
	case v1alpha1.EgressUDP:
		out.Protocol = mesh.EgressPort_UDP
	case v1alpha1.EgressAny:
		out.Protocol = mesh.EgressPort_ANY
	default:
		return nil, false
	}
	last := in.Port
	if in.EndPort != nil {
		last = *in.EndPort
		out.EndPort = uint32(last)
	}
	return out, 1 <= in.Port && in.Port <= last && last <= maxPort
}

// isDNSName is the pattern of the API.
func isDNSName(text string) bool {
	name := strings.TrimPrefix(text, "*.")
	if name == "" || len(text) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
