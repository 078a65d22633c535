package policy_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/policy"
)

// bounds of whether something is so: for sure, and as far as anybody can say.
type bounds struct{ must, may bool }

func certain(b bool) bounds          { return bounds{b, b} }
func (b bounds) not() bounds         { return bounds{!b.may, !b.must} }
func (b bounds) and(c bounds) bounds { return bounds{b.must && c.must, b.may && c.may} }
func (b bounds) or(c bounds) bounds  { return bounds{b.must || c.must, b.may || c.may} }

// like is one pattern, read plainly.
func like(p *mesh.StringPattern, s string) bool {
	switch m := p.Match.(type) {
	case *mesh.StringPattern_Exact:
		return s == m.Exact
	case *mesh.StringPattern_Prefix:
		return strings.HasPrefix(s, m.Prefix)
	case *mesh.StringPattern_Suffix:
		return strings.HasSuffix(s, m.Suffix)
	}
	return s != ""
}

func anyLike(list []*mesh.StringPattern, s string) bounds {
	found := false
	for _, p := range list {
		found = found || like(p, s)
	}
	return certain(found)
}

// field: every value must, one may.
func field(list []*mesh.StringPattern, values []string) bounds {
	b := bounds{must: len(values) > 0}
	for _, v := range values {
		one := anyLike(list, v)
		b.must, b.may = b.must && one.must, b.may || one.may
	}
	return b
}

// reference decides by the words of AuthorizationPolicy, about rules of these kinds.
func reference(all []*mesh.RequestPolicy, method, path string, values []string) bool {
	allows, allowed := false, false
	for _, p := range all {
		matched := bounds{}
		for _, rule := range p.Rules {
			one := certain(true)
			if len(rule.To) > 0 {
				to := bounds{}
				for _, o := range rule.To {
					b := certain(true)
					for _, c := range []struct {
						list, not []*mesh.StringPattern
						of        string
					}{{o.Methods, o.NotMethods, method}, {o.Paths, o.NotPaths, path}} {
						if len(c.list) > 0 {
							b = b.and(anyLike(c.list, c.of))
						}
						if len(c.not) > 0 {
							b = b.and(anyLike(c.not, c.of).not())
						}
					}
					to = to.or(b)
				}
				one = one.and(to)
			}
			for _, w := range rule.When {
				if len(w.Values) > 0 {
					one = one.and(field(w.Values, values))
				}
				if len(w.NotValues) > 0 {
					one = one.and(field(w.NotValues, values).not())
				}
			}
			matched = matched.or(one)
		}
		switch p.Action {
		case mesh.RequestPolicy_ALLOW:
			allows, allowed = true, allowed || matched.must
		default:
			if matched.may {
				return false
			}
		}
	}
	return allowed || !allows
}

// Decide is what the reference says, in any order; adding a DENY never widens.
func TestDecideEqualsTheReference(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	methods, paths, values := []string{"GET", "PUT"}, []string{"/", "/a", "/a/b", "/b.c", "/bxc"}, []string{"x", "xy", "y", "z"}
	some := func(of []string) (out []*mesh.StringPattern) {
		for range random.IntN(3) {
			v := of[random.IntN(len(of))]
			switch random.IntN(5) {
			case 0:
				v += "*"
			case 1:
				v = "*"
			}
			out = append(out, text(v)...)
		}
		return out
	}
	outcomes := map[bool]int{}
	for range 5000 {
		var all []*mesh.RequestPolicy
		for i := range 1 + random.IntN(3) {
			p := of([]mesh.RequestPolicy_Action{mesh.RequestPolicy_ALLOW, mesh.RequestPolicy_DENY, mesh.RequestPolicy_CUSTOM}[random.IntN(3)])
			p.Name = fmt.Sprint("p", i)
			for range random.IntN(3) {
				rule := &mesh.RequestRule{}
				for range random.IntN(2) {
					o := &mesh.RequestOperation{Methods: some(methods), NotMethods: some(methods), Paths: some(paths), NotPaths: some(paths)}
					if len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) > 0 {
						rule.To = append(rule.To, o)
					}
				}
				if w := (&mesh.RequestCondition{Key: "request.headers[a]", Values: some(values), NotValues: some(values)}); len(w.Values)+len(w.NotValues) > 0 {
					rule.When = append(rule.When, w)
				}
				p.Rules = append(p.Rules, rule)
			}
			all = append(all, p)
		}
		method, path := methods[random.IntN(len(methods))], paths[random.IntN(len(paths))]
		var fields, got []string
		for range random.IntN(3) {
			v := values[random.IntN(len(values))]
			fields, got = append(fields, "a", v), append(got, v)
		}
		s := subject(t, method, "cart", path, fields...)
		d, want := decide(s, all...), reference(all, method, path, got)
		if d.Allowed != want {
			t.Fatalf("%s %s %v: %v, want %v by %v", method, path, got, d.Reason, want, all)
		}
		outcomes[want]++
		if all[0].Action != mesh.RequestPolicy_ALLOW && d.Allowed && !decide(s, all[1:]...).Allowed {
			t.Fatalf("%v widens", all[0])
		}
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if again := decide(s, all...); again.Reason != d.Reason || (again.Policy == nil) != (d.Policy == nil) || d.Policy != nil && again.Policy.Name != d.Policy.Name {
			t.Fatalf("%+v, and in another order %+v", d, again)
		}
	}
	if outcomes[true] < 500 || outcomes[false] < 500 {
		t.Errorf("%v: too few of one kind to say anything", outcomes)
	}
}

func TestDecisionsAllocateLittle(t *testing.T) {
	var compiled []*policy.Policy
	for i := range 100 {
		p := of(mesh.RequestPolicy_DENY, operation(&mesh.RequestOperation{Methods: text("PUT"), Paths: text("/admin*", "/x"), Hosts: text("*.example")}))
		p.Name = fmt.Sprint("p", i)
		c, err := policy.Parse(p)
		if err != nil {
			t.Fatal(err)
		}
		compiled = append(compiled, c)
	}
	s := subject(t, "GET", "cart:80", "/a")
	if n := testing.AllocsPerRun(100, func() { policy.Decide(&s, compiled) }); n != 0 {
		t.Errorf("%v allocations for one decision by 100 policies", n)
	}
}

// Whatever policies say of tokens: adding a DENY never widens, and without a token
// nobody is let in by what demands one.
func TestPoliciesAboutTokensNeverWiden(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	principals, values := []string{"me/you", "me/", "you/*", "*"}, []string{"admin", "user", "a*", "*"}
	some := func(of []string) []*mesh.StringPattern {
		if random.IntN(2) == 0 {
			return nil
		}
		return text(of[random.IntN(len(of))])
	}
	keys := []string{"request.auth.principal", "request.auth.audiences", "request.auth.presenter", "request.auth.claims[role]", "request.auth.claims[realm][role]", "request.auth.claims[scope]"}
	randomPolicy := func(action mesh.RequestPolicy_Action, name string) (p *mesh.RequestPolicy, demands bool) {
		p, demands = of(action), true
		p.Name = name
		for range 1 + random.IntN(2) {
			rule := &mesh.RequestRule{}
			source := &mesh.RequestSource{RequestPrincipals: some(principals), NotRequestPrincipals: some(principals)}
			if len(source.RequestPrincipals)+len(source.NotRequestPrincipals) > 0 {
				rule.From = append(rule.From, source)
			}
			w := &mesh.RequestCondition{Key: keys[random.IntN(len(keys))], Values: some(values), NotValues: some(values)}
			if len(w.Values)+len(w.NotValues) > 0 {
				rule.When = append(rule.When, w)
			}
			demands = demands && len(source.RequestPrincipals)+len(w.Values) > 0
			p.Rules = append(p.Rules, rule)
		}
		return p, demands
	}
	role := func() any {
		return []any{"admin", "user", "", "a b", "user admin", []any{"x", "admin"}, []any{"x", 1.0}, 1.0, true, nil, map[string]any{}, "\xff"}[random.IntN(12)]
	}
	outcomes := map[bool]int{}
	for range 20000 {
		allow, demands := randomPolicy(mesh.RequestPolicy_ALLOW, "allow")
		deny, _ := randomPolicy(mesh.RequestPolicy_DENY, "deny")
		s := subject(t, "GET", "cart", "/")
		if random.IntN(3) > 0 {
			s.Claims = &policy.Claims{
				Issuer: []string{"me", "you", ""}[random.IntN(3)], Subject: []string{"you", ""}[random.IntN(2)], Presenter: []string{"", "admin"}[random.IntN(2)],
				Audiences: []string{"user", "admin"}[:random.IntN(3)], All: map[string]any{"role": role(), "scope": role(), "realm": map[string]any{"role": role()}},
			}
		}
		alone, both := decide(s, allow).Allowed, decide(s, allow, deny).Allowed
		outcomes[alone]++
		if both && !alone {
			t.Fatalf("%v widens %v for %+v", deny, allow, s.Claims)
		}
		if alone && demands && s.Claims == nil {
			t.Fatalf("%v lets in who has no token", allow)
		}
	}
	if outcomes[true] < 1000 || outcomes[false] < 1000 {
		t.Errorf("%v: too few of one kind to say anything", outcomes)
	}
}
