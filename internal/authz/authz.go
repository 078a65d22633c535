// Package authz decides which connections policy lets in: the authorizations of
// the ambient protocol, compiled once and asked for every connection.
//
//	parse.go   one message of the wire -> one Policy, and an error that names the field
//	match.go   does a policy match a connection: yes, no, or nobody can say
//	authz.go   Decide: what all policies that apply come to
//
// The meaning is the protocol's. Of a policy one rule must match, of a rule every
// clause, of a clause one match, of a match every kind of condition; of the values
// of one kind one, and none of its not_ list. A policy without rules never matches,
// nor does a match without conditions; a rule without clauses, and a clause without
// matches, demand nothing. Principals are compared without spiffe://, namespaces and
// service accounts are those of the proven identity. Who proved none is matched by
// no value, not even by presence, and so by every negated list.
//
// A policy that denies goes before all that allow; if there is one that allows, one
// of them must match. Dry-run policies are judged, reported, and decide nothing.
//
// Invariants: what cannot be read or judged counts as whatever denies more: in a
// DENY as a match, in an ALLOW as none, negated or not. A policy of which not even
// that much can be read denies everything, wherever it may apply. Literals are
// literals. Decide is pure, does not depend on the order of policies, and allocates
// nothing as long as no dry-run policy would have denied.
//
// Which policies apply to a workload is workload's to know, what becomes of the
// decision the asker's.
package authz

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Scope says which workloads a policy applies to.
type Scope uint8

const (
	// Global: all of the mesh.
	Global Scope = iota
	// Namespace: those of the policy's namespace.
	Namespace
	// Selector: those that name it.
	Selector
)

// Action is what a policy that matches does.
type Action uint8

const (
	Allow Action = iota
	Deny
)

// Policy is one authorization. It never changes.
type Policy struct {
	// Name is namespace/name.
	Name string
	// Namespace that a policy of that scope applies to.
	Namespace string
	Scope     Scope
	Action    Action
	DryRun    bool
	// Err, if not nil, names what could not be read.
	Err error

	// everything: it matches whatever comes, because its rules are not understood.
	everything bool
	rules      []rule
}

// Connection is what policies may know of one.
type Connection struct {
	// Identity that the peer proved; zero if none.
	Identity spiffe.ID
	// Client is where it comes from.
	Client netip.Addr
	// Destination is the workload's own address and port.
	Destination netip.AddrPort
}

// Reason says how a decision came about.
type Reason string

const (
	// NoPolicy: none that allows applies, and none denies.
	NoPolicy Reason = "NoPolicy"
	// Allowed: a policy that allows matches, and none denies.
	Allowed Reason = "Allowed"
	// Denied: a policy that denies matches.
	Denied Reason = "Denied"
	// NotAllowed: there are policies that allow, and none of them matches.
	NotAllowed Reason = "NotAllowed"
)

// Decision is what policies come to.
type Decision struct {
	Allowed bool
	Reason  Reason
	// Policy that decided; of several the first by name. Of NotAllowed it is one
	// of those that might have allowed. Nil of NoPolicy.
	Policy *Policy
	// WouldDeny are the dry-run policies that would have denied, if all were in
	// force, sorted by name.
	WouldDeny []*Policy
}

// Decide judges a connection by all policies that apply. A policy may be in several
// of the lists.
func Decide(c Connection, policies ...[]*Policy) Decision {
	var buffer [maxPrincipal]byte
	s := subjectOf(&c, buffer[:0])

	var denied, allowed, lacking *Policy
	var wouldDeny []*Policy
	var dryAllows, dryAllowed bool
	for _, list := range policies {
		for _, p := range list {
			matches := p.matches(&s)
			switch {
			case p.Action == Deny && p.DryRun:
				if matches {
					wouldDeny = append(wouldDeny, p)
				}
			case p.Action == Deny:
				if matches {
					denied = first(denied, p)
				}
			case p.DryRun:
				dryAllows = true
				dryAllowed = dryAllowed || matches
			case matches:
				allowed = first(allowed, p)
			default:
				lacking = first(lacking, p)
			}
		}
	}
	if dryAllows && !dryAllowed && allowed == nil {
		wouldDeny = appendDryAllows(wouldDeny, policies)
	}
	d := Decision{WouldDeny: sorted(wouldDeny)}
	switch {
	case denied != nil:
		d.Reason, d.Policy = Denied, denied
	case allowed != nil:
		d.Allowed, d.Reason, d.Policy = true, Allowed, allowed
	case lacking != nil:
		d.Reason, d.Policy = NotAllowed, lacking
	default:
		d.Allowed, d.Reason = true, NoPolicy
	}
	return d
}

// first of two by name, so that the order of policies does not matter.
func first(a, b *Policy) *Policy {
	if a == nil || b.Name < a.Name {
		return b
	}
	return a
}

func appendDryAllows(to []*Policy, policies [][]*Policy) []*Policy {
	for _, list := range policies {
		for _, p := range list {
			if p.Action == Allow && p.DryRun {
				to = append(to, p)
			}
		}
	}
	return to
}

func sorted(policies []*Policy) []*Policy {
	if len(policies) > 1 {
		slices.SortFunc(policies, func(a, b *Policy) int { return strings.Compare(a.Name, b.Name) })
		policies = slices.Compact(policies)
	}
	return policies
}
