package workload

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/skew"
)

const (
	// maxRequestPolicies bounds what a waypoint looks through for one request.
	maxRequestPolicies = 1024
	// maxRoutes of one Service.
	maxRoutes = 4096
)

// Binding is what a waypoint has to know of something that is bound to it.
type Binding struct {
	// Key of the Service, or the uid of the workload.
	Key string
	// Policies names the RequestPolicies for all of it, sorted.
	Policies []string
	// Authentications names the RequestAuthentications for all of it, sorted.
	Authentications []string
	// ClaimHeaders are fields that clients may not send, besides those that
	// Authentications say.
	ClaimHeaders []string
	// Routes as they came: what a rule means, and what of it means nothing, is for
	// who routes. What cannot be read is answered with an error, for what it matches.
	Routes []*mesh.Route
}

// bindingOf goes before the waypoint in the name of the Binding of one that another
// takes over from.
const bindingOf = "@"

// bindingKey is what a Binding is found by. A waypoint has one of each, for others are
// not sent to it; what it is named may change.
func bindingKey(name string) string {
	if i := strings.LastIndex(name, bindingOf); i >= 0 {
		return name[:i]
	}
	return name
}

// parseBinding reads b, which the controller named name.
func parseBinding(name string, b *mesh.Binding) (*Binding, error) {
	// What of a route is not known is for who routes.
	if len(b.ProtoReflect().GetUnknown()) > 0 {
		return nil, skew.ErrUnknown
	}
	out := &Binding{Key: bindingKey(name), Routes: b.GetRoutes(), ClaimHeaders: b.GetClaimHeaders()}
	var key string
	switch target := b.GetTarget().(type) {
	case *mesh.Binding_Service:
		key = target.Service
		if err := checkServiceKey(key); err != nil {
			return nil, fmt.Errorf("service: %w", err)
		}
	case *mesh.Binding_Workload:
		key = target.Workload
	default:
		return nil, errors.New("target: neither service nor workload")
	}
	if key == "" || key != out.Key {
		return nil, fmt.Errorf("target: %q, want the resource's name", key)
	}
	if !isPolicyKey(b.GetWaypoint()) {
		return nil, fmt.Errorf("waypoint: %q, want namespace/name", b.GetWaypoint())
	}
	if name != key && name != key+bindingOf+b.GetWaypoint() {
		return nil, fmt.Errorf("waypoint: %q, want the one in the resource's name", b.GetWaypoint())
	}
	if len(out.Routes) > maxRoutes {
		return nil, fmt.Errorf("routes: %d, want at most %d", len(out.Routes), maxRoutes)
	}
	for i, r := range out.Routes {
		if _, known := mesh.Route_Kind_name[int32(r.GetKind())]; !known || r.GetKind() == mesh.Route_KIND_UNSPECIFIED {
			return nil, fmt.Errorf("routes[%d].kind: %d is not known", i, r.GetKind())
		}
		if r.GetPort() > 65535 {
			return nil, fmt.Errorf("routes[%d].port: %d", i, r.GetPort())
		}
	}
	var err error
	if out.Policies, err = policyNames("policies", b.GetPolicies(), maxRequestPolicies); err != nil {
		return nil, err
	}
	out.Authentications, err = policyNames("authentications", b.GetAuthentications(), maxRequestPolicies)
	return out, err
}

// parseRequestPolicy reads p, which the controller named name. What it says is for
// who asks it: what cannot be read of it denies.
func parseRequestPolicy(name string, p *mesh.RequestPolicy) (*mesh.RequestPolicy, error) {
	if key := p.GetNamespace() + "/" + p.GetName(); key != name || strings.Contains(p.GetName(), "/") {
		return nil, fmt.Errorf("namespace, name: %q, want the resource's name", key)
	}
	return p, nil
}

// parseRequestAuthentication reads a, which the controller named name. What it says is
// for who verifies tokens: what cannot be read of it refuses them.
func parseRequestAuthentication(name string, a *mesh.RequestAuthentication) (*mesh.RequestAuthentication, error) {
	if key := a.GetNamespace() + "/" + a.GetName(); key != name || strings.Contains(a.GetName(), "/") {
		return nil, fmt.Errorf("namespace, name: %q, want the resource's name", key)
	}
	return a, nil
}
