package translate

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
)

const waypointPoliciesExtension = "ambit.mesh/waypoint-policies"

// requests are the AuthorizationPolicies as waypoints enforce them: on the client, whom
// the nodes of what is behind a waypoint do not see, and on requests.
type requests struct {
	system, clusterDomain string
	// policies by namespace/name, and of each who asks for it.
	policies map[string]*mesh.RequestPolicy
	objects  map[string]*v1alpha1.AuthorizationPolicy
	keys     []string // sorted
	askers   map[string][]string
	outcomes map[string]*Policy
}

func indexRequests(in Input) *requests {
	r := &requests{
		system: in.Config.SystemNamespace, clusterDomain: in.Config.ClusterDomain, policies: make(map[string]*mesh.RequestPolicy),
		objects: make(map[string]*v1alpha1.AuthorizationPolicy), askers: make(map[string][]string), outcomes: make(map[string]*Policy),
	}
	for _, object := range in.AuthorizationPolicies {
		key := object.Namespace + "/" + object.Name
		r.policies[key], r.objects[key] = r.requestPolicy(object), object
		r.keys = append(r.keys, key)
	}
	slices.Sort(r.keys)
	return r
}

// forService returns the policies that name a Service, or its waypoint, as their target.
func (r *requests) forService(s *corev1.Service, waypoint types.NamespacedName) []string {
	return r.pick(waypoint, func(object *v1alpha1.AuthorizationPolicy) bool {
		return slices.ContainsFunc(object.Spec.TargetRefs, func(ref v1alpha1.PolicyTargetReference) bool {
			switch {
			case ref.Kind == "Service" && (ref.Group == "" || ref.Group == "core"):
				return object.Namespace == s.Namespace && ref.Name == s.Name
			case ref.Kind == "Gateway":
				return object.Namespace == waypoint.Namespace && ref.Name == waypoint.Name
			}
			return object.Namespace == s.Namespace // it means nothing: the stricter reading
		})
	})
}

// forPod returns the policies that select a pod, or all of its namespace or mesh.
func (r *requests) forPod(p *pod, waypoint types.NamespacedName) []string {
	return r.pick(waypoint, func(object *v1alpha1.AuthorizationPolicy) bool {
		if object.Namespace != p.Namespace && object.Namespace != r.system || len(object.Spec.TargetRefs) > 0 {
			return false
		}
		return !selects(object.Spec.Selector) || matches(object.Spec.Selector, p.Labels)
	})
}

func (r *requests) pick(waypoint types.NamespacedName, applies func(*v1alpha1.AuthorizationPolicy) bool) (names []string) {
	alias := WaypointAlias(waypoint)
	for _, key := range r.keys {
		if !applies(r.objects[key]) {
			continue
		}
		names = append(names, key)
		if !slices.Contains(r.askers[key], alias) {
			r.askers[key] = append(r.askers[key], alias)
		}
	}
	return names
}

// requests publishes the policies that some waypoint asks.
func (o *output) requests(r *requests, w *waypoints) {
	for _, key := range r.keys {
		if aliases := r.askers[key]; len(aliases) > 0 {
			slices.Sort(aliases)
			o.add(key, r.policies[key], resource.Relations{Aliases: aliases})
			p := r.outcomes[key]
			p.AtWaypoints = []Ref{{Type: resource.RequestPolicy, Name: key}}
			for _, alias := range aliases {
				waypoint := strings.TrimPrefix(alias, waypointAlias)
				namespace, name, _ := strings.Cut(waypoint, "/")
				if w.Gateway(types.NamespacedName{Namespace: namespace, Name: name}) != nil {
					p.Waypoints = append(p.Waypoints, waypoint)
				}
			}
		}
	}
}

// policiesAtWaypoints says on a pod's workload which policies the waypoints that
// stand before one of its ports have to ask.
func (r *requests) policiesAtWaypoints(p *pod, w *waypoints, services *serviceIndex, serving map[string]*workload.PortList) []string {
	var names []string
	add := func(before Standing) {
		for _, waypoint := range before.all() {
			names = append(names, r.forPod(p, waypoint)...)
		}
	}
	add(w.beforePod(p))
	for _, s := range services.all {
		if serving[s.key] != nil {
			add(w.beforeService(s))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// requestPolicy is an AuthorizationPolicy, all of it. What means nothing makes it deny.
func (r *requests) requestPolicy(object *v1alpha1.AuthorizationPolicy) *mesh.RequestPolicy {
	out := &mesh.RequestPolicy{Namespace: object.Namespace, Name: object.Name}
	out.DryRun = object.Annotations[v1alpha1.DryRunAnnotation] == "true"
	if len(object.Unread) > 0 {
		out.Action, out.Invalid = mesh.RequestPolicy_DENY, object.Unread[0]+": is not known to the controller"
		return out
	}
	switch object.Spec.Action {
	case v1alpha1.AuthorizationAllow, "":
		out.Action = mesh.RequestPolicy_ALLOW
	case v1alpha1.AuthorizationDeny:
		out.Action = mesh.RequestPolicy_DENY
	case v1alpha1.AuthorizationAudit:
		out.Action, out.DryRun = mesh.RequestPolicy_DENY, true
	case v1alpha1.AuthorizationCustom:
		out.Action = mesh.RequestPolicy_CUSTOM
		var err error
		if out.Provider, err = r.provider(object); err != nil {
			out.Action, out.Invalid = mesh.RequestPolicy_DENY, "spec.provider"+err.Error()
			return out
		}
	default:
		out.Action, out.Invalid = mesh.RequestPolicy_DENY, fmt.Sprintf("spec.action: %q is not served", object.Spec.Action)
		return out
	}
	c := requestConversion{conversion{policy: &Policy{Namespace: object.Namespace, Name: object.Name}, deny: out.Action != mesh.RequestPolicy_ALLOW}}
	for i, rule := range object.Spec.Rules {
		out.Rules = append(out.Rules, c.rule(fmt.Sprintf("spec.rules[%d]", i), rule))
	}
	if len(c.policy.Problems) > 0 {
		out.Rules, out.Invalid = nil, c.policy.Problems[0].Field+": "+c.policy.Problems[0].Message
	}
	return out
}

// The time that a provider has: as the API says.
const (
	providerTimeout    = time.Second
	maxProviderTimeout = 5 * time.Second
	// maxProviderBody is what of a body it may be told.
	maxProviderBody = 1 << 20
)

// provider that a policy names. The error begins with the rest of the field's name.
func (r *requests) provider(object *v1alpha1.AuthorizationPolicy) (*mesh.AuthorizationProvider, error) {
	in := object.Spec.Provider
	if in == nil {
		return nil, errors.New(": is missing")
	}
	timeout := providerTimeout
	if in.Timeout != "" {
		var err error
		if timeout, err = time.ParseDuration(in.Timeout); err != nil || timeout <= 0 || timeout > maxProviderTimeout {
			return nil, fmt.Errorf(".timeout: %q, want more than 0 and at most %v", in.Timeout, maxProviderTimeout)
		}
	}
	if in.Port < 1 || in.Port > maxPort {
		return nil, fmt.Errorf(".port: %d is no port", in.Port)
	}
	namespace := cmp.Or(in.Namespace, object.Namespace)
	out := &mesh.AuthorizationProvider{
		Service: namespace + "/" + in.Service + "." + namespace + ".svc." + r.clusterDomain, Port: uint32(in.Port),
		Timeout: durationpb.New(timeout), FailOpen: in.FailOpen, PeerCertificate: in.IncludePeerCertificate,
	}
	for name, value := range in.ContextExtensions {
		if out.ContextExtensions == nil {
			out.ContextExtensions = make(map[string]string)
		}
		out.ContextExtensions[name] = string(value)
	}
	if b := in.RequestBody; b != nil {
		if b.MaxBytes < 1 || b.MaxBytes > maxProviderBody {
			return nil, fmt.Errorf(".requestBody.maxBytes: %d, want 1 to %d", b.MaxBytes, maxProviderBody)
		}
		out.MaxBody, out.PartialBody = uint32(b.MaxBytes), b.AllowPartial
	}
	return out, nil
}

// requestConversion is of the rules of one policy.
type requestConversion struct{ conversion }

// rule converts one. A condition goes as it is: waypoints read it themselves.
func (c *requestConversion) rule(field string, in v1alpha1.AuthorizationRule) *mesh.RequestRule {
	out := &mesh.RequestRule{Condition: in.Condition}
	for i, f := range in.From {
		out.From = append(out.From, c.source(fmt.Sprintf("%s.from[%d].source", field, i), f.Source))
	}
	for i, t := range in.To {
		out.To = append(out.To, c.operation(fmt.Sprintf("%s.to[%d].operation", field, i), t.Operation))
	}
	for i, w := range in.When {
		out.When = append(out.When, &mesh.RequestCondition{
			Key:       w.Key,
			Values:    c.patterns(fmt.Sprintf("%s.when[%d].values", field, i), w.Values),
			NotValues: c.patterns(fmt.Sprintf("%s.when[%d].notValues", field, i), w.NotValues),
		})
		if len(w.Values)+len(w.NotValues) == 0 {
			c.invalid(fmt.Sprintf("%s.when[%d]", field, i), "has no values")
		}
	}
	return out
}

func (c *requestConversion) source(field string, s v1alpha1.Source) *mesh.RequestSource {
	return &mesh.RequestSource{
		Principals:           convert(&c.conversion, field+".principals", s.Principals, principalPattern),
		NotPrincipals:        convert(&c.conversion, field+".notPrincipals", s.NotPrincipals, principalPattern),
		Namespaces:           c.patterns(field+".namespaces", s.Namespaces),
		NotNamespaces:        c.patterns(field+".notNamespaces", s.NotNamespaces),
		ServiceAccounts:      convert(&c.conversion, field+".serviceAccounts", s.ServiceAccounts, c.accountName),
		NotServiceAccounts:   convert(&c.conversion, field+".notServiceAccounts", s.NotServiceAccounts, c.accountName),
		IpBlocks:             convert(&c.conversion, field+".ipBlocks", s.IPBlocks, addressRange),
		NotIpBlocks:          convert(&c.conversion, field+".notIpBlocks", s.NotIPBlocks, addressRange),
		RemoteIpBlocks:       convert(&c.conversion, field+".remoteIpBlocks", s.RemoteIPBlocks, addressRange),
		NotRemoteIpBlocks:    convert(&c.conversion, field+".notRemoteIpBlocks", s.NotRemoteIPBlocks, addressRange),
		RequestPrincipals:    c.patterns(field+".requestPrincipals", s.RequestPrincipals),
		NotRequestPrincipals: c.patterns(field+".notRequestPrincipals", s.NotRequestPrincipals),
	}
}

func (c *requestConversion) operation(field string, o v1alpha1.Operation) *mesh.RequestOperation {
	return &mesh.RequestOperation{
		Ports:      convert(&c.conversion, field+".ports", o.Ports, portNumber),
		NotPorts:   convert(&c.conversion, field+".notPorts", o.NotPorts, portNumber),
		Hosts:      c.patterns(field+".hosts", o.Hosts),
		NotHosts:   c.patterns(field+".notHosts", o.NotHosts),
		Methods:    c.patterns(field+".methods", o.Methods),
		NotMethods: c.patterns(field+".notMethods", o.NotMethods),
		Paths:      convert(&c.conversion, field+".paths", o.Paths, pathPattern),
		NotPaths:   convert(&c.conversion, field+".notPaths", o.NotPaths, pathPattern),
	}
}

func (c *requestConversion) patterns(field string, values []v1alpha1.StringMatch) []*mesh.StringPattern {
	return convert(&c.conversion, field, values, stringPattern)
}

func (c *requestConversion) accountName(v string) (string, error) {
	account, err := c.serviceAccount(v)
	if err != nil {
		return "", err
	}
	return account.Namespace + "/" + account.ServiceAccount, nil
}

func principalPattern(v string) (*mesh.StringPattern, error) {
	if _, err := principal(v); err != nil {
		return nil, err
	}
	return stringPattern(v)
}

func stringPattern(v string) (*mesh.StringPattern, error) {
	m, err := stringMatch(v)
	if err != nil {
		return nil, err
	}
	switch m := m.MatchType.(type) {
	case *security.StringMatch_Exact:
		return &mesh.StringPattern{Match: &mesh.StringPattern_Exact{Exact: m.Exact}}, nil
	case *security.StringMatch_Prefix:
		return &mesh.StringPattern{Match: &mesh.StringPattern_Prefix{Prefix: m.Prefix}}, nil
	case *security.StringMatch_Suffix:
		return &mesh.StringPattern{Match: &mesh.StringPattern_Suffix{Suffix: m.Suffix}}, nil
	}
	return &mesh.StringPattern{Match: &mesh.StringPattern_Present{Present: true}}, nil
}

// pathPattern is a value, or a template: {*} for one segment, {**} for any number.
func pathPattern(v string) (*mesh.StringPattern, error) {
	if !strings.ContainsAny(v, "{}") {
		return stringPattern(v)
	}
	for segment := range strings.SplitSeq(strings.TrimPrefix(v, "/"), "/") {
		if strings.ContainsAny(segment, "{}*") && segment != "{*}" && segment != "{**}" {
			return nil, fmt.Errorf("%q is no template: {*} and {**} are whole segments", v)
		}
	}
	if !strings.HasPrefix(v, "/") {
		return nil, fmt.Errorf("%q is no template: it begins with a slash", v)
	}
	return &mesh.StringPattern{Match: &mesh.StringPattern_Template{Template: v}}, nil
}

func addressRange(v string) (*mesh.AddressRange, error) {
	a, err := ipBlock(v)
	if err != nil {
		return nil, err
	}
	return &mesh.AddressRange{Address: a.Address, Length: a.Length}, nil
}
