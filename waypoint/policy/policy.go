// Package policy decides which connections and requests a waypoint lets through: by
// RequestPolicies, which are AuthorizationPolicies in full.
//
//	policy.go  Decide: what all policies that apply come to
//	match.go   does a policy match, and what is taken for an answer where there is none
//
// Of a policy one rule must match; of a rule one source, one operation and every
// condition; of a source or an operation every field that it has; of a field one value,
// or of one that begins with not_ none. A policy that denies goes before all that allow;
// if there is one that allows, one of them must match. Dry-run policies decide nothing.
//
// What cannot be judged counts as whatever denies more: in a DENY as a match, in an
// ALLOW as none, negated or not. So is what speaks of requests, of a connection
// without any. A header that a request has more than once matches in a DENY if one of
// its values does, in an ALLOW only if all do.
//
// Invariants: Decide is pure; adding a policy that denies never lets more through;
// literals are literals.
//
// Which policies apply is said by bindings and workloads.
package policy

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Subject is what is judged.
type Subject struct {
	// Identity that the client proved, and its address.
	Identity spiffe.ID
	Client   netip.Addr
	// Destination is the endpoint; its address is invalid while none is chosen.
	Destination netip.AddrPort
	// Request; nil of a connection that carries none.
	Request *request.Request
}

// Denial is why something is not let through.
type Denial struct {
	// Policy that denies, or one of those that might have allowed: namespace/name.
	Policy string
	Err    error
}

func (d *Denial) Error() string { return d.Err.Error() }
func (d *Denial) Unwrap() error { return d.Err }

var errUnknownAction = errors.New("what it does is not known here")

// Decide judges by all policies that apply. The error is a *Denial. WouldDeny are those
// that would have denied if they were in force.
func Decide(s Subject, policies []*mesh.RequestPolicy) (wouldDeny []string, err error) {
	var lacking *mesh.RequestPolicy
	allowed := false
	for _, p := range policies {
		name := p.GetNamespace() + "/" + p.GetName()
		deny := p.GetAction() == mesh.RequestPolicy_DENY
		var denial error
		switch {
		case p.GetInvalid() != "":
			denial = fmt.Errorf("denied by policy %s, which means nothing: %s", name, p.GetInvalid())
		case !deny && p.GetAction() != mesh.RequestPolicy_ALLOW:
			denial = fmt.Errorf("denied by policy %s: %w", name, errUnknownAction)
		case deny && matches(p, &s, true):
			denial = fmt.Errorf("denied by policy %s", name)
		case deny:
			continue
		case matches(p, &s, false):
			allowed = allowed || !p.GetDryRun()
			continue
		}
		switch {
		case denial != nil && p.GetDryRun():
			wouldDeny = append(wouldDeny, name)
		case denial != nil:
			return wouldDeny, &Denial{name, denial}
		case !p.GetDryRun() && lacking == nil:
			lacking = p
		}
	}
	if lacking != nil && !allowed {
		name := lacking.GetNamespace() + "/" + lacking.GetName()
		return wouldDeny, &Denial{name, fmt.Errorf("none of the policies that allow matches, such as %s", name)}
	}
	return wouldDeny, nil
}
