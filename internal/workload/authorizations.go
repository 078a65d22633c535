package workload

import (
	"cmp"
	"errors"
	"maps"
	"slices"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/authz"
)

// authorizations are all of the mesh, by where they apply. Snapshots between which
// none changed share them.
type authorizations struct {
	byName      map[string]authorization
	global      []*authz.Policy
	byNamespace map[string][]*authz.Policy
}

// authorization is a policy, and what identifies its contents: nothing, if they
// could not be read.
type authorization struct {
	policy *authz.Policy
	digest digest
}

// Policies are those that decide on connections to one workload.
type Policies struct {
	Global, Namespace, Attached []*authz.Policy
	// Missing are the names of attached ones that have not come yet. Until they are
	// there, nobody can say what is let in.
	Missing []string
}

// Decide judges a connection by all of them but those that are missing.
func (p *Policies) Decide(c authz.Connection) authz.Decision {
	return authz.Decide(c, p.Global, p.Namespace, p.Attached)
}

// Policies that apply to w, as it was read last: see Unreadable.
func (s *Snapshot) Policies(w *Workload) Policies {
	a := s.authorizations
	p := Policies{Global: a.global, Namespace: a.byNamespace[w.Namespace]}
	for _, name := range w.Authorizations {
		if known, ok := a.byName[name]; ok {
			p.Attached = append(p.Attached, known.policy)
		} else {
			p.Missing = append(p.Missing, name)
		}
	}
	return p
}

// PolicyVersion tells whether, of one snapshot and the next, the same policies apply
// to a workload: if so, the two are equal.
type PolicyVersion struct {
	authorizations *authorizations
	workload       *Workload
	unreadable     bool
}

// PolicyVersion of what applies to w, a workload of the snapshot or an earlier one; nil
// stands for none.
func (s *Snapshot) PolicyVersion(w *Workload) PolicyVersion {
	return PolicyVersion{s.authorizations, w, w != nil && s.Unreadable(w.UID)}
}

// Authorization finds a policy by its name, namespace/name. One that could not be
// read denies: see authz.Parse.
func (s *Snapshot) Authorization(name string) (*authz.Policy, bool) {
	a, ok := s.authorizations.byName[name]
	return a.policy, ok
}

// Authorizations lists the names of all policies, sorted.
func (s *Snapshot) Authorizations() []string { return sortedKeys(s.authorizations.byName) }

// AuthorizationsDigest is a hash of the policies that apply to w.
func (s *Snapshot) AuthorizationsDigest(w *Workload) []byte {
	var sum digest
	p := s.Policies(w)
	for _, list := range [][]*authz.Policy{p.Global, p.Namespace, p.Attached} {
		for _, policy := range list {
			sum.add(s.authorizations.byName[policy.Name].digest)
		}
	}
	return sum.bytes()
}

// applyAuthorizations does not leave the former state of what cannot be read in
// place: what it was changed to may be narrower, so that it denies.
func (e *edit) applyAuthorizations(d Delta) (rejected []Rejection) {
	next := maps.Clone(e.next.authorizations.byName)
	changed := false
	replace := func(name string, policy *authz.Policy, sum digest) {
		old, known := next[name]
		if e.replaced(old.digest, sum) || known != (policy != nil) || policy != nil && policy.Err != nil {
			changed = true
		} else {
			return
		}
		if policy == nil {
			delete(next, name)
		} else {
			next[name] = authorization{policy, sum}
		}
	}
	for _, name := range d.Removed {
		e.settle(Resource{Name: name}, d.Type, nil, nil)
		replace(name, nil, digest{})
	}
	for _, r := range d.Upserts {
		policy, err := parseAuthorization(r)
		rejected = append(rejected, e.settle(r, d.Type, nil, err)...)
		sum := digest{}
		if err == nil {
			sum = resourceDigest(r)
		}
		replace(r.Name, policy, sum)
	}
	if changed {
		e.changed = true
		e.next.authorizations = arrange(next)
	}
	return rejected
}

// parseAuthorization returns a policy also with an error.
func parseAuthorization(r Resource) (*authz.Policy, error) {
	if r.Body == nil {
		err := errors.New("empty")
		return authz.Unreadable(r.Name, err), err
	}
	message, err := unpack(r.Body, &security.Authorization{})
	if err != nil {
		return authz.Unreadable(r.Name, err), err
	}
	return authz.Parse(r.Name, message)
}

func arrange(byName map[string]authorization) *authorizations {
	a := &authorizations{byName: byName, byNamespace: map[string][]*authz.Policy{}}
	for _, known := range byName {
		switch p := known.policy; p.Scope {
		case authz.Global:
			a.global = append(a.global, p)
		case authz.Namespace:
			a.byNamespace[p.Namespace] = append(a.byNamespace[p.Namespace], p)
		}
	}
	byPolicyName := func(x, y *authz.Policy) int { return cmp.Compare(x.Name, y.Name) }
	slices.SortFunc(a.global, byPolicyName)
	for _, list := range a.byNamespace {
		slices.SortFunc(list, byPolicyName)
	}
	return a
}
