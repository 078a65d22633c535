// Package policy decides which requests go on: the RequestPolicies of what they are for,
// compiled once and asked for every request.
//
//	parse.go    one message of the wire -> one Policy, and an error that names the field
//	match.go    does a policy match a request: yes, no, or nobody can say
//	expression.go  conditions in CEL: what they may know
//	pattern.go  values, and templates of paths
//	policy.go   Decide: what all policies that apply come to
//
// The meaning is AuthorizationPolicy's. Of a policy one rule must match; of a rule one of
// from, one of to, every one of when, and the condition in CEL; of those every field, by one of its values, or
// by none of its not_ values. What a request has not got is matched by no value, and so
// by every negated list. A policy that denies goes before all that allow; if there is one
// that allows, one of them must match. Dry-run policies are judged and decide nothing.
//
// Of a field that occurs more than once, and of a list in one, every value counts: where
// some match and some do not, nobody can say whether it does. Paths are compared in
// package request's form, without the query; hosts without a port, unless the value has
// one. Of a path it counts what it stands for, since that is what endpoints look at: /a%3Ab
// is /a:b. A host without a port has 80, and the path * of OPTIONS may be what is said of /.
//
// Invariants: what cannot be read, judged, or is not UTF-8 counts as whatever denies
// more: in a DENY as a match, in an ALLOW as none, negated or not. Literals are literals.
// Decide does not depend on the order of policies. What a CUSTOM policy matches is denied
// as long as its provider has not agreed.
//
// Which policies apply is not decided here, nor whether a token may be believed.
package policy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Action is what a policy that matches does.
type Action uint8

const (
	Deny Action = iota
	Allow
	// Custom: a provider is to decide.
	Custom
)

// Policy is one RequestPolicy. It never changes.
type Policy struct {
	// Name is namespace/name.
	Name   string
	Action Action
	DryRun bool
	// Err, if not nil, names what could not be read.
	Err error

	// everything: it matches whatever comes.
	everything bool
	rules      []rule
	// Provider of Custom.
	Provider Provider
}

// Provider is a Service that decides about requests.
type Provider struct {
	// Service is its key.
	Service string
	Port    uint16
	Timeout time.Duration
	// FailOpen: what it cannot be asked about passes.
	FailOpen bool
	// MaxBody is how much of a body it is told, 0 for nothing. PartialBody: of a
	// longer one the beginning.
	MaxBody     int
	PartialBody bool
	// ContextExtensions are told to it with each request, and with PeerCertificate the
	// client's certificate as well.
	ContextExtensions map[string]string
	PeerCertificate   bool
}

// Subject is what policies may know of a request.
type Subject struct {
	// Request is nil of a connection of which no requests are read.
	Request *request.Request
	// Identity that the client proved, and its address: that of the tunnel, as no proxy is
	// trusted to report another one. Policies have two words for it, source and remote.
	Identity spiffe.ID
	Client   netip.Addr
	// Endpoint is the workload's own address and port; zero as long as none is chosen.
	// Then what speaks of it decides nothing, and Decide must be asked again.
	Endpoint netip.AddrPort
	// Claims of a token that was verified; nil for none.
	Claims *Claims
	// Approved tells whether the provider of a Custom policy agreed; nil: none did.
	Approved func(*Policy) bool
}

// Claims are those of a verified token.
type Claims struct {
	Issuer, Subject, Presenter string
	Audiences                  []string
	// All of them, as encoding/json reads them.
	All map[string]any
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
	// NotAsked: all that is missing is the word of providers.
	NotAsked Reason = "NotAsked"
	// NotAllowed: there are policies that allow, and none of them matches.
	NotAllowed Reason = "NotAllowed"
)

// Decision is what policies come to.
type Decision struct {
	Allowed bool
	Reason  Reason
	// Policy that decided; of several the first by name. Of NotAllowed it is one of
	// those that might have allowed. Nil of NoPolicy.
	Policy *Policy
	// Ask are the Custom policies whose providers have to be asked, of NotAsked.
	Ask []*Policy
	// WouldDeny is the first dry-run policy by name that would have denied; nil for none.
	WouldDeny *Policy
}

// Decide judges a request by all policies that apply.
func Decide(s *Subject, policies []*Policy) Decision {
	var ask []*Policy
	var denied, allowed, lacking, dryDenied, dryAllowed, dryLacking *Policy
	for _, p := range policies {
		matches := p.matches(s)
		switch {
		case p.Action != Allow && p.DryRun:
			if matches {
				dryDenied = first(dryDenied, p)
			}
		case p.Action == Custom:
			if matches && (s.Approved == nil || !s.Approved(p)) {
				ask = append(ask, p)
			}
		case p.Action != Allow:
			if matches {
				denied = first(denied, p)
			}
		case p.DryRun && matches:
			dryAllowed = first(dryAllowed, p)
		case p.DryRun:
			dryLacking = first(dryLacking, p)
		case matches:
			allowed = first(allowed, p)
		default:
			lacking = first(lacking, p)
		}
	}
	d := Decision{WouldDeny: dryDenied}
	if dryLacking != nil && dryAllowed == nil && allowed == nil {
		d.WouldDeny = first(d.WouldDeny, dryLacking)
	}
	switch {
	case denied != nil:
		d.Reason, d.Policy = Denied, denied
	case allowed == nil && lacking != nil:
		d.Reason, d.Policy = NotAllowed, lacking
	case len(ask) > 0:
		slices.SortFunc(ask, func(a, b *Policy) int { return strings.Compare(a.Name, b.Name) })
		d.Reason, d.Policy, d.Ask = NotAsked, ask[0], ask
	case allowed != nil:
		d.Allowed, d.Reason, d.Policy = true, Allowed, allowed
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
