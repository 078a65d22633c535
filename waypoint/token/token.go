// Package token reads the tokens (JWT) that requests bear.
//
//	token.go   one message of the wire -> one Authentication; what a token proves
//	find.go    where in a request its token is
//	change.go  what of a request goes on: without forged claims, with those of its token
//
// A request has one token or none. Two of them, in two places or twice in one, could be
// read in two ways, and are refused; so is what stands where a token should and is none,
// and a token that no rule takes. A rule takes a token that was found where the rule
// looks, is of its issuer, and is verified.
//
// Invariants: everything here is pure; what cannot be read of an Authentication makes it
// take fewer tokens, never more; a Proof names who verified it.
//
// Signatures are package jwt's, keys on the network package jwks', and who may do what
// with a token package policy's.
package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/jwt"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/policy"
)

// Authentication is one RequestAuthentication. It never changes.
type Authentication struct {
	// Name is namespace/name.
	Name, Namespace string
	// MeshWide: what it verifies counts everywhere.
	MeshWide bool
	// Err, if not nil, names what could not be read.
	Err error
	// Closed: nothing of it can be relied on, and it refuses every request.
	Closed bool

	rules []*Rule
}

// Rule is an issuer.
type Rule struct {
	// Source of the keys; the zero one if they are inline.
	Source jwt.Source

	issuer     string
	audiences  []string
	algorithms []string
	inline     *jwt.Keys
	places     []place
	forward    bool
	claims     []claimHeader
	err        error // it refuses its issuer's tokens
}

type claimHeader struct {
	header string
	claim  []string
}

// maxRules of an Authentication: each may be tried for each request.
const maxRules = 64

// Parse reads one. With an error there is one all the same, which takes fewer tokens
// than what was meant.
func Parse(in *mesh.RequestAuthentication) (*Authentication, error) {
	a := &Authentication{Namespace: in.GetNamespace(), Name: in.GetNamespace() + "/" + in.GetName(), MeshWide: in.GetMeshWide()}
	switch {
	case hasUnknown(in):
		a.Err = errUnknownField
	case in.GetInvalid() != "":
		a.Err = errors.New(in.GetInvalid())
	case len(in.GetRules()) > maxRules:
		a.Err = fmt.Errorf("rules: %d, want at most %d", len(in.GetRules()), maxRules)
	}
	if a.Closed = a.Err != nil; a.Closed {
		return a, a.Err
	}
	for i, r := range in.GetRules() {
		rule := parseRule(r)
		if rule.err != nil && a.Err == nil {
			a.Err = fmt.Errorf("rules[%d]: %w", i, rule.err)
		}
		a.rules = append(a.rules, rule)
	}
	return a, a.Err
}

var errUnknownField = errors.New("has a field that is not known, which may narrow it")

func hasUnknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

func parseRule(in *mesh.TokenRule) *Rule {
	r := &Rule{issuer: in.GetIssuer(), audiences: in.GetAudiences(), algorithms: in.GetAlgorithms(), forward: in.GetForward()}
	fail := func(err error) {
		if r.err == nil {
			r.err = err
		}
	}
	for _, h := range in.GetFromHeaders() {
		if hasUnknown(h) || !isFieldName(h.GetName()) {
			fail(fmt.Errorf("from_headers: %q is no header", h.GetName()))
			continue
		}
		r.places = append(r.places, place{kind: header, name: h.GetName(), prefix: h.GetPrefix()})
	}
	for _, name := range in.GetFromParams() {
		r.places = append(r.places, place{kind: param, name: name})
	}
	for _, name := range in.GetFromCookies() {
		r.places = append(r.places, place{kind: cookie, name: name})
	}
	if len(r.places) == 0 {
		r.places = usualPlaces
	}
	for _, c := range in.GetClaimHeaders() {
		if hasUnknown(c) || !isFieldName(c.GetHeader()) || len(c.GetClaim()) == 0 {
			fail(fmt.Errorf("claim_headers: %q is no header", c.GetHeader()))
		}
		r.claims = append(r.claims, claimHeader{c.GetHeader(), c.GetClaim()})
	}
	if len(r.algorithms) == 0 {
		r.algorithms = jwt.Asymmetric
	}
	for _, a := range r.algorithms {
		if !jwt.Known(a) {
			fail(fmt.Errorf("algorithms: %q is not known", a))
		}
	}
	switch keys := in.GetKeys().(type) {
	case *mesh.TokenRule_Jwks:
		var err error
		if r.inline, err = jwt.ParseKeys([]byte(keys.Jwks)); err != nil {
			fail(fmt.Errorf("jwks: %w", err))
		}
	case *mesh.TokenRule_JwksUri:
		r.Source = jwt.Source{URI: keys.JwksUri, CertificateAuthority: in.GetCertificateAuthority()}
		if keys.JwksUri == "" {
			fail(errors.New("jwks_uri: empty"))
		}
	default:
		fail(errors.New("jwks, jwks_uri: neither is set"))
	}
	if authority := in.GetCertificateAuthority(); authority != "" {
		if _, err := jwt.ParseAuthorities(authority); err != nil {
			fail(fmt.Errorf("certificate_authority: %w", err))
		}
	}
	switch {
	case in.GetInvalid() != "":
		r.err = errors.New(in.GetInvalid())
	case hasUnknown(in):
		r.err = errUnknownField
	case r.issuer == "":
		fail(errors.New("issuer: empty"))
	}
	return r
}

func isFieldName(name string) bool { return http1.IsToken(name) && name == strings.ToLower(name) }

// Sources are where the keys of all rules are; those of rules that cannot be carried out are not wanted.
func (a *Authentication) Sources() (all []jwt.Source) {
	for _, r := range a.rules {
		if r.Source.URI != "" && r.err == nil {
			all = append(all, r.Source)
		}
	}
	return all
}

// Keys finds those of a source. With a set that was seen before and lacks one, it may
// return a later one. Its error says why there are none.
type Keys func(from jwt.Source, lacking *jwt.Keys) (*jwt.Keys, error)

// Proof is what a token proved.
type Proof struct {
	Claims *policy.Claims
	// By are the Authentications that verified it, by name.
	By []string

	found Found
	began time.Time
	rules []*Rule // that took it
	by    []*Authentication
}

// Prove verifies a token that was found, by every one of the Authentications that looks
// there.
func (f *Found) Prove(all []*Authentication, keys Keys, now time.Time) (*Proof, error) {
	parsed, err := jwt.Parse(f.text)
	if err != nil {
		return nil, fmt.Errorf("the token in %s: %w", f.place, err)
	}
	p := &Proof{found: *f, began: now}
	var why error
	for _, a := range all {
		for _, r := range a.rules {
			if r.issuer != parsed.Issuer() || !slices.Contains(r.places, f.place) {
				continue
			}
			if err := r.verify(parsed, keys, now); err != nil {
				why = errors.Join(why, fmt.Errorf("%s: %w", a.Name, err))
				continue
			}
			p.rules = append(p.rules, r)
			if !slices.Contains(p.By, a.Name) {
				p.By, p.by = append(p.By, a.Name), append(p.by, a)
			}
		}
	}
	switch {
	case len(p.By) > 0:
	case why != nil:
		return nil, fmt.Errorf("the token in %s, of %q: %w", f.place, parsed.Issuer(), why)
	default:
		return nil, fmt.Errorf("the token in %s: no rule takes those of %q from there", f.place, parsed.Issuer())
	}
	p.Claims = &policy.Claims{
		Issuer: parsed.Issuer(), Subject: parsed.Subject(), Presenter: parsed.Presenter(), Audiences: parsed.Audiences(), All: parsed.Claims(),
	}
	return p, nil
}

// Holds tells whether an Authentication, as it is now, verifies the token as of the
// moment that it came.
func (p *Proof) Holds(a *Authentication, keys Keys) bool {
	switch {
	case slices.Contains(p.by, a):
		return true
	case a.Closed:
		return false
	}
	again, err := p.found.Prove([]*Authentication{a}, keys, p.began)
	return err == nil && slices.Contains(again.By, a.Name)
}

func (r *Rule) verify(t *jwt.Token, keys Keys, now time.Time) error {
	if r.err != nil {
		return r.err
	}
	// What costs nothing goes first: nobody's keys are fetched for it.
	if err := t.Current(r.audiences, now); err != nil {
		return err
	}
	if r.inline != nil {
		return t.Verify(r.inline, r.algorithms)
	}
	set, err := keys(r.Source, nil)
	if err != nil {
		return err
	}
	err = t.Verify(set, r.algorithms)
	if !errors.Is(err, jwt.ErrKeyUnknown) {
		return err
	}
	later, failed := keys(r.Source, set)
	if failed != nil || later == set {
		return err
	}
	return t.Verify(later, r.algorithms)
}
