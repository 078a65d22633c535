package translate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/internal/condition"
)

// authorizationPolicies publishes each as the authorization of its name. Those
// for the mesh or a namespace are found by their scope; the others are attached.
func (o *output) authorizationPolicies(in Input, t *targets, refs targetsOfRefs, r *requests) {
	for _, object := range oldestFirst(in.AuthorizationPolicies) {
		p := newPolicy(AuthorizationPolicy, object)
		message := &security.Authorization{Name: object.Name, Namespace: object.Namespace}
		forRequests := readAction(p, object, message)
		var pods []*pod
		switch {
		case len(object.Spec.TargetRefs) > 0:
			message.Scope = security.Scope_WORKLOAD_SELECTOR
			pods = refs.resolve(p, object)
			for _, pod := range pods {
				t.attach(p, pod)
			}
			if message.Action == security.Action_ALLOW {
				// What is let in to one Service would be let in to its pods.
				message.Rules = nil
			}
		case selects(object.Spec.Selector):
			message.Scope = security.Scope_WORKLOAD_SELECTOR
			pods = t.selected(object.Namespace, object.Spec.Selector)
			for _, pod := range pods {
				t.attach(p, pod)
			}
		default:
			message.Scope = security.Scope_NAMESPACE
			if object.Namespace == t.system {
				message.Scope = security.Scope_GLOBAL
			}
			pods = t.in(object.Namespace)
			for _, pod := range pods {
				t.enforce(p, pod, false)
			}
		}
		if without := refs.without(pods); without > 0 {
			for _, problem := range forRequests {
				problem.Message = fmt.Sprintf("no waypoint stands before %d of the %d pods that it is for: there %s", without, len(pods), problem.Message)
				p.Problems = append(p.Problems, problem)
			}
		}
		if object.Spec.Action == v1alpha1.AuthorizationCustom && len(object.Unread) == 0 {
			if !refs.provider(p, object, r) {
				message.Rules = []*security.Rule{{}}
			}
		}
		r.outcomes[p.key()] = p
		published, err := resource.New(p.key(), message, resource.Relations{})
		o.publishPolicy(p, p.key(), published, err)
	}
}

// attach an authorization policy to a pod's workload.
func (t *targets) attach(p *Policy, pod *pod) {
	a := t.of(pod)
	a.authorizations = append(a.authorizations, p.key())
	t.enforce(p, pod, true)
}

// readAction reads what the policy does, and its rules. It returns what is to be said
// where no waypoint enforces them.
func readAction(p *Policy, object *v1alpha1.AuthorizationPolicy, message *security.Authorization) []Problem {
	action := object.Spec.Action
	if len(object.Unread) > 0 {
		p.unread(object.Unread, "everything is denied")
		message.Action, message.Rules, message.DryRun = security.Action_DENY, []*security.Rule{{}}, p.DryRun
		return nil
	}
	switch action {
	case v1alpha1.AuthorizationAllow, "":
		message.Action = security.Action_ALLOW
	case v1alpha1.AuthorizationDeny:
		message.Action = security.Action_DENY
	case v1alpha1.AuthorizationAudit:
		message.Action = security.Action_DENY
		p.DryRun = true
	case v1alpha1.AuthorizationCustom:
		message.Action = security.Action_DENY // as long as nobody asks
	default:
		p.say(Invalid, "spec.action", fmt.Sprintf("%q is not served: everything is denied", action))
		message.Action = security.Action_DENY
		message.Rules = []*security.Rule{{}}
		message.DryRun = p.DryRun
		return nil
	}
	message.DryRun = p.DryRun
	c := conversion{policy: p, deny: message.Action == security.Action_DENY}
	for i, rule := range object.Spec.Rules {
		if r := c.rule(fmt.Sprintf("spec.rules[%d]", i), rule); r != nil {
			message.Rules = append(message.Rules, r)
		}
	}
	if action == v1alpha1.AuthorizationCustom && len(c.forRequests) < len(object.Spec.Rules) {
		c.forRequests = append(c.forRequests, Problem{RequiresWaypoint, "spec.action", "nobody asks the provider: what the rules match is denied"})
	}
	if len(object.Spec.Rules) == 0 && c.deny {
		p.say(NoRules, "spec.rules", "is empty: nothing is denied")
	}
	return c.forRequests
}

// conversion is of the rules of one policy.
type conversion struct {
	policy *Policy
	deny   bool
	// forRequests is what is to be said of rules about requests.
	forRequests []Problem
	// of the rule at hand:
	bad      bool
	requests []string // fields that are for waypoints
}

// rule converts one rule; nil if it matches nothing. What is not expressed makes
// a rule that allows match nothing, and a rule that denies match more: without
// what is for waypoints, or everything if it means nothing.
func (c *conversion) rule(field string, in v1alpha1.AuthorizationRule) *security.Rule {
	c.bad, c.requests = false, nil
	var from, to, when alternatives
	for i, f := range in.From {
		from = append(from, c.source(fmt.Sprintf("%s.from[%d].source", field, i), f.Source))
	}
	for i, t := range in.To {
		to = append(to, c.operation(fmt.Sprintf("%s.to[%d].operation", field, i), t.Operation))
	}
	rule := &security.Rule{}
	rule.Clauses = append(from.clause(), to.clause()...)
	for i, w := range in.When {
		when = alternatives{c.condition(fmt.Sprintf("%s.when[%d]", field, i), w)}
		rule.Clauses = append(rule.Clauses, when.clause()...)
	}
	if in.Condition != "" {
		c.forWaypoints(field+".condition", 1)
		if _, err := condition.Compile(in.Condition); err != nil {
			c.invalid(field+".condition", err.Error())
		}
	}
	if len(c.requests) > 0 {
		effect := "the rule matches nothing"
		if c.deny {
			effect = "the rule denies whatever the rest of it matches"
		}
		c.forRequests = append(c.forRequests, Problem{RequiresWaypoint, strings.Join(c.requests, ", "), effect})
	}
	switch {
	case c.bad && c.deny:
		return &security.Rule{}
	case c.bad, len(c.requests) > 0 && !c.deny:
		return nil
	}
	return rule
}

// alternatives are what one of must match.
type alternatives []*security.Match

// clause of the alternatives; none if there are none, or if one of them says
// nothing that can be said here, and so may be anything.
func (a alternatives) clause() []*security.Clause {
	if len(a) == 0 || slices.ContainsFunc(a, isEmpty) {
		return nil
	}
	return []*security.Clause{{Matches: a}}
}

func isEmpty(m *security.Match) bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.SourceIps)+len(m.NotSourceIps)+len(m.DestinationIps)+len(m.NotDestinationIps)+
		len(m.DestinationPorts)+len(m.NotDestinationPorts)+len(m.ServiceAccounts)+len(m.NotServiceAccounts) == 0
}

func (c *conversion) source(field string, s v1alpha1.Source) *security.Match {
	c.forWaypoints(field+".remoteIpBlocks", len(s.RemoteIPBlocks))
	c.forWaypoints(field+".notRemoteIpBlocks", len(s.NotRemoteIPBlocks))
	c.forWaypoints(field+".requestPrincipals", len(s.RequestPrincipals))
	c.forWaypoints(field+".notRequestPrincipals", len(s.NotRequestPrincipals))
	m := &security.Match{
		Principals:         convert(c, field+".principals", s.Principals, principal),
		NotPrincipals:      convert(c, field+".notPrincipals", s.NotPrincipals, principal),
		Namespaces:         convert(c, field+".namespaces", s.Namespaces, stringMatch),
		NotNamespaces:      convert(c, field+".notNamespaces", s.NotNamespaces, stringMatch),
		ServiceAccounts:    convert(c, field+".serviceAccounts", s.ServiceAccounts, c.serviceAccount),
		NotServiceAccounts: convert(c, field+".notServiceAccounts", s.NotServiceAccounts, c.serviceAccount),
		SourceIps:          convert(c, field+".ipBlocks", s.IPBlocks, ipBlock),
		NotSourceIps:       convert(c, field+".notIpBlocks", s.NotIPBlocks, ipBlock),
	}
	c.notEmpty(field, m, len(s.RemoteIPBlocks)+len(s.NotRemoteIPBlocks)+len(s.RequestPrincipals)+len(s.NotRequestPrincipals))
	return m
}

func (c *conversion) operation(field string, o v1alpha1.Operation) *security.Match {
	c.forWaypoints(field+".hosts", len(o.Hosts))
	c.forWaypoints(field+".notHosts", len(o.NotHosts))
	c.forWaypoints(field+".methods", len(o.Methods))
	c.forWaypoints(field+".notMethods", len(o.NotMethods))
	c.forWaypoints(field+".paths", len(o.Paths))
	c.forWaypoints(field+".notPaths", len(o.NotPaths))
	m := &security.Match{
		DestinationPorts:    convert(c, field+".ports", o.Ports, portNumber),
		NotDestinationPorts: convert(c, field+".notPorts", o.NotPorts, portNumber),
	}
	c.notEmpty(field, m, len(o.Hosts)+len(o.NotHosts)+len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths))
	return m
}

func (c *conversion) condition(field string, w v1alpha1.Condition) *security.Match {
	m := &security.Match{}
	values, notValues := field+".values", field+".notValues"
	if len(w.Values)+len(w.NotValues) == 0 {
		c.invalid(values, "and notValues are empty")
		return m
	}
	switch w.Key {
	case "source.ip":
		m.SourceIps, m.NotSourceIps = convert(c, values, w.Values, ipBlock), convert(c, notValues, w.NotValues, ipBlock)
	case "source.namespace":
		m.Namespaces, m.NotNamespaces = convert(c, values, w.Values, stringMatch), convert(c, notValues, w.NotValues, stringMatch)
	case "source.principal":
		m.Principals, m.NotPrincipals = convert(c, values, w.Values, principal), convert(c, notValues, w.NotValues, principal)
	case "source.serviceAccount":
		m.ServiceAccounts, m.NotServiceAccounts = convert(c, values, w.Values, c.serviceAccount), convert(c, notValues, w.NotValues, c.serviceAccount)
	case "destination.ip":
		m.DestinationIps, m.NotDestinationIps = convert(c, values, w.Values, ipBlock), convert(c, notValues, w.NotValues, ipBlock)
	case "destination.port":
		m.DestinationPorts, m.NotDestinationPorts = convert(c, values, w.Values, portNumber), convert(c, notValues, w.NotValues, portNumber)
	default:
		if !isRequestKey(w.Key) {
			c.invalid(field+".key", fmt.Sprintf("%q is not known", w.Key))
			return m
		}
		c.forWaypoints(field+".key", 1)
	}
	return m
}

func isRequestKey(key string) bool {
	return strings.HasPrefix(key, "request.") || key == "remote.ip" || key == "connection.sni"
}

// forWaypoints notes a field that says something about requests.
func (c *conversion) forWaypoints(field string, values int) {
	if values > 0 {
		c.requests = append(c.requests, field)
	}
}

// notEmpty refuses what says nothing at all: it would match everything.
func (c *conversion) notEmpty(field string, m *security.Match, forWaypoints int) {
	if isEmpty(m) && forWaypoints == 0 && !c.bad {
		c.invalid(field, "is empty")
	}
}

func (c *conversion) invalid(field, message string) {
	c.bad = true
	effect := ": the rule matches nothing"
	if c.deny {
		effect = ": the rule denies everything"
	}
	c.policy.say(Invalid, field, message+effect)
}
