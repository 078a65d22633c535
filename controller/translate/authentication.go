package translate

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/internal/binding"
	"github.com/ambit-mesh/ambit/internal/jwt"
)

// authentications are the RequestAuthentications as waypoints enforce them: each on the
// requests for what it is for, wherever their client comes from.
type authentications struct {
	system    string
	waypoints *waypoints
	services  *serviceIndex
	pods      []*pod
	all       []*authentication           // by namespace and name
	servedBy  map[*service][]*pod         // those that selectors may pick; nil if there are none
	serves    map[*pod][]*service         // the same, from the other side
	headers   map[*service][]string       // what claimsOf found
	byKey     map[string]*service         // services by their keys
	found     map[asked][]*authentication // what ofService found
}

// asked is a Service, and a waypoint that stands before it.
type asked struct {
	service  *service
	waypoint types.NamespacedName
}

// authentication is one.
type authentication struct {
	object  *v1alpha1.RequestAuthentication
	outcome *Policy
	message *mesh.RequestAuthentication
	// askers are the aliases of the waypoints that have to know it.
	askers map[string]bool
}

func indexAuthentications(in Input, w *waypoints, services *serviceIndex, pods []*pod, serving *serving) *authentications {
	a := &authentications{system: in.Config.SystemNamespace, waypoints: w, services: services, pods: pods}
	if len(in.RequestAuthentications) == 0 {
		return a
	}
	a.servedBy, a.serves = make(map[*service][]*pod), make(map[*pod][]*service)
	a.byKey, a.headers, a.found = make(map[string]*service), make(map[*service][]string), make(map[asked][]*authentication)
	for _, s := range services.all {
		a.byKey[s.key] = s
	}
	for p, byService := range serving.ofPod {
		for key := range byService {
			if s := a.byKey[key]; s != nil {
				a.servedBy[s] = append(a.servedBy[s], p)
				a.serves[p] = append(a.serves[p], s)
			}
		}
	}
	for _, object := range in.RequestAuthentications {
		a.all = append(a.all, readAuthentication(object, a.system))
	}
	slices.SortFunc(a.all, func(x, y *authentication) int { return strings.Compare(x.outcome.key(), y.outcome.key()) })
	return a
}

// ofService lists those that are for requests for a Service: that name it or its
// waypoint, or select one of the pods that serve it, or will.
func (a *authentications) ofService(s *service, waypoint types.NamespacedName) []*authentication {
	if found, ok := a.found[asked{s, waypoint}]; ok || len(a.all) == 0 {
		return found
	}
	var found []*authentication
	for _, one := range a.all {
		if refs := one.object.Spec.TargetRefs; len(refs) > 0 {
			if slices.ContainsFunc(refs, func(ref v1alpha1.PolicyTargetReference) bool { return a.names(one, ref, s, waypoint) }) {
				found = append(found, one)
			}
			continue
		}
		selector := one.object.Spec.Selector
		if a.covers(one, s.Namespace) && (!selects(selector) || len(s.Spec.Selector) > 0 && matches(selector, s.Spec.Selector)) ||
			slices.ContainsFunc(a.servedBy[s], func(p *pod) bool { return a.selects(one, p) }) {
			found = append(found, one)
		}
	}
	a.found[asked{s, waypoint}] = found
	return found
}

// names tells whether a target is a Service, or its waypoint. What means nothing is
// every Service of the namespace.
func (a *authentications) names(one *authentication, ref v1alpha1.PolicyTargetReference, s *service, waypoint types.NamespacedName) bool {
	switch {
	case ref.Kind == "Service" && (ref.Group == "" || ref.Group == "core"):
		return one.object.Namespace == s.Namespace && ref.Name == s.Name
	case ref.Kind == "Gateway" && ref.Group == "gateway.networking.k8s.io":
		return one.object.Namespace == waypoint.Namespace && ref.Name == waypoint.Name
	}
	return one.object.Namespace == s.Namespace
}

func (a *authentications) covers(one *authentication, namespace string) bool {
	return one.object.Namespace == namespace || one.object.Namespace == a.system
}

func (a *authentications) selects(one *authentication, p *pod) bool {
	return a.covers(one, p.Namespace) && (!selects(one.object.Spec.Selector) || matches(one.object.Spec.Selector, p.Labels))
}

// forService are the names of those that a waypoint applies to requests for a Service.
func (a *authentications) forService(s *service, waypoint types.NamespacedName) []string {
	return a.ask(a.ofService(s, waypoint), waypoint, s.Namespace)
}

// forPod are those for a pod that is bound itself.
func (a *authentications) forPod(p *pod, waypoint types.NamespacedName) []string {
	return a.ask(a.ofPod(p, waypoint), waypoint, p.Namespace)
}

func (a *authentications) ofPod(p *pod, waypoint types.NamespacedName) (found []*authentication) {
	for _, one := range a.all {
		refs := one.object.Spec.TargetRefs
		gateway := slices.ContainsFunc(refs, func(ref v1alpha1.PolicyTargetReference) bool {
			return ref.Kind == "Gateway" && one.object.Namespace == waypoint.Namespace && ref.Name == waypoint.Name
		})
		if gateway || len(refs) == 0 && a.selects(one, p) {
			found = append(found, one)
		}
	}
	return found
}

// ask notes who has to know them: a waypoint that is there, and takes what is of the namespace.
func (a *authentications) ask(all []*authentication, waypoint types.NamespacedName, namespace string) (names []string) {
	asks := a.waypoints.Gateway(waypoint) != nil && a.waypoints.Consents(waypoint, namespace)
	for _, one := range all {
		names = append(names, one.outcome.key())
		if asks {
			one.askers[waypoint.String()] = true
		}
	}
	return names
}

// claimHeaders are the fields that the backends of a Service's routes take for claims:
// whoever sends them could pretend anything, where the Service itself has no tokens.
func (a *authentications) claimHeaders(s *service, routes []*mesh.Route) []string {
	if len(a.all) == 0 {
		return nil
	}
	all := make(map[string]bool)
	for _, route := range routes {
		for _, rule := range route.GetRules() {
			backends := slices.Clone(rule.GetBackends())
			for _, f := range rule.GetFilters() {
				if mirror := f.GetMirror(); mirror != nil {
					backends = append(backends, mirror.GetBackend())
				}
			}
			for _, b := range backends {
				if backend := a.byKey[b.GetService()]; backend != nil && backend != s {
					for _, header := range a.claimsOf(backend) {
						all[header] = true
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func (a *authentications) claimsOf(s *service) []string {
	if found, ok := a.headers[s]; ok {
		return found
	}
	before := a.waypoints.beforeService(s).all()
	if len(before) == 0 {
		before = append(before, types.NamespacedName{})
	}
	var found []string
	for _, waypoint := range before {
		for _, one := range a.ofService(s, waypoint) {
			for _, rule := range one.message.GetRules() {
				for _, c := range rule.GetClaimHeaders() {
					found = append(found, c.GetHeader())
				}
			}
		}
	}
	a.headers[s] = found
	return found
}

// authentications publishes those that some waypoint asks for, and what became of all.
func (o *output) authentications(a *authentications) {
	for _, one := range a.all {
		p := one.outcome
		p.Waypoints = slices.Sorted(maps.Keys(one.askers))
		var aliases []string
		for _, waypoint := range p.Waypoints {
			namespace, name, _ := strings.Cut(waypoint, "/")
			aliases = append(aliases, WaypointAlias(types.NamespacedName{Namespace: namespace, Name: name}))
		}
		a.uncovered(one)
		r, err := resource.New(p.key(), one.message, resource.Relations{Aliases: aliases})
		if err == nil && len(aliases) == 0 {
			p.Version = r.Version // what it would be sent as
			o.outcomes = append(o.outcomes, p)
			continue
		}
		o.publishPolicy(p, p.key(), r, err)
		p.AtWaypoints, p.Resources = p.Resources, nil
	}
}

// uncovered says for whom no waypoint looks at tokens.
func (a *authentications) uncovered(one *authentication) {
	p := one.outcome
	for i, ref := range one.object.Spec.TargetRefs {
		field := fmt.Sprintf("spec.targetRefs[%d]", i)
		name := types.NamespacedName{Namespace: one.object.Namespace, Name: ref.Name}
		switch {
		case ref.Kind == "Service" && (ref.Group == "" || ref.Group == "core"):
			s := a.services.byName[name]
			if s == nil {
				p.say(TargetNotFound, field, "there is no Service "+name.String())
				continue
			}
			p.Workloads += len(a.servedBy[s])
			if !a.waypoints.bindsService(s) {
				p.say(RequiresWaypoint, field, "Service "+name.String()+" is not bound to a waypoint: nobody looks at tokens")
			}
		case ref.Kind == "Gateway" && ref.Group == "gateway.networking.k8s.io":
			if a.waypoints.Gateway(name) == nil {
				p.say(TargetNotFound, field, "there is no Gateway "+name.String()+" of class "+binding.Class)
			}
		default:
			p.say(Invalid, field, fmt.Sprintf("%s %s is nothing that it can be for: it is for every Service of the namespace", ref.Kind, ref.Name))
		}
	}
	if len(one.object.Spec.TargetRefs) > 0 {
		return
	}
	without := 0
	for _, pod := range a.pods {
		if !a.selects(one, pod) || a.waypoints.IsPod(pod.Pod) {
			continue
		}
		p.Workloads++
		if !a.waypoints.bindsPod(pod) && !slices.ContainsFunc(a.serves[pod], a.waypoints.bindsService) {
			without++
		}
	}
	if without > 0 {
		p.say(RequiresWaypoint, "spec", fmt.Sprintf("no waypoint stands before %d of the %d pods that it is for: nobody looks at tokens there", without, p.Workloads))
	}
}

// readAuthentication converts an object. A rule that means nothing is sent as one that
// refuses its issuer's tokens.
func readAuthentication(object *v1alpha1.RequestAuthentication, system string) *authentication {
	one := &authentication{
		object: object, outcome: newPolicy(RequestAuthentication, object), askers: make(map[string]bool),
		message: &mesh.RequestAuthentication{Name: object.Name, Namespace: object.Namespace, MeshWide: object.Namespace == system},
	}
	if one.outcome.DryRun {
		one.outcome.DryRun = false
		one.outcome.say(Invalid, "metadata.annotations["+v1alpha1.DryRunAnnotation+"]", "is for policies: this is enforced")
	}
	if len(object.Unread) > 0 {
		one.outcome.unread(object.Unread, "every token is refused")
		return one
	}
	if len(object.Spec.JWTRules) == 0 {
		one.outcome.say(Invalid, "spec.jwtRules", "is empty: every token is refused")
	}
	for i, in := range object.Spec.JWTRules {
		out, field, err := readTokenRule(in)
		if err != nil {
			field = fmt.Sprintf("spec.jwtRules[%d].%s", i, field)
			out.Invalid = field + ": " + err.Error()
			one.outcome.say(Invalid, field, err.Error()+": the tokens of the issuer are refused")
		}
		one.message.Rules = append(one.message.Rules, out)
	}
	return one
}

// readTokenRule names the field that is wrong.
func readTokenRule(in v1alpha1.JWTRule) (out *mesh.TokenRule, field string, err error) {
	out = &mesh.TokenRule{Issuer: in.Issuer, Forward: in.ForwardOriginalToken}
	for _, a := range in.Audiences {
		out.Audiences = append(out.Audiences, string(a))
	}
	for _, h := range in.FromHeaders {
		out.FromHeaders = append(out.FromHeaders, &mesh.TokenRule_Header{Name: strings.ToLower(string(h.Name)), Prefix: h.Prefix})
	}
	for _, p := range in.FromParams {
		out.FromParams = append(out.FromParams, string(p))
	}
	for _, c := range in.FromCookies {
		out.FromCookies = append(out.FromCookies, string(c))
	}
	for _, c := range in.OutputClaimToHeaders {
		out.ClaimHeaders = append(out.ClaimHeaders, &mesh.TokenRule_ClaimHeader{Header: strings.ToLower(string(c.Header)), Claim: strings.Split(c.Claim, ".")})
	}
	for i, a := range in.Algorithms {
		if !jwt.Known(string(a)) {
			return out, fmt.Sprintf("algorithms[%d]", i), fmt.Errorf("%q is not known", a)
		}
		out.Algorithms = append(out.Algorithms, string(a))
	}
	switch {
	case (in.JWKS == "") == (in.JWKSURI == ""):
		return out, "jwks", fmt.Errorf("the keys are either in jwks or at jwksUri")
	case in.JWKSURI != "":
		out.Keys = &mesh.TokenRule_JwksUri{JwksUri: in.JWKSURI}
		if field, err := readAuthority(in, out); err != nil {
			return out, field, err
		}
	case in.CertificateAuthority != "":
		return out, "certificateAuthority", errors.New("is for a jwksUri of https: remove it")
	default:
		out.Keys = &mesh.TokenRule_Jwks{Jwks: in.JWKS}
		if _, err := jwt.ParseKeys([]byte(in.JWKS)); err != nil {
			return out, "jwks", err
		}
	}
	if in.Issuer == "" {
		return out, "issuer", fmt.Errorf("is empty")
	}
	return out, "", nil
}

// readAuthority reads who vouches for the host of the keys, if that is said.
func readAuthority(in v1alpha1.JWTRule, out *mesh.TokenRule) (field string, err error) {
	const name = "certificateAuthority"
	if in.CertificateAuthority == "" {
		return "", nil
	}
	if !strings.HasPrefix(in.JWKSURI, "https:") {
		return name, errors.New("is for a jwksUri of https: remove it, or change that")
	}
	if _, err := jwt.ParseAuthorities(in.CertificateAuthority); err != nil {
		return name, fmt.Errorf("%w: put the certificates of the authorities there, in PEM", err)
	}
	out.CertificateAuthority = in.CertificateAuthority
	return "", nil
}
