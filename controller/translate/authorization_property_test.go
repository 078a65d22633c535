package translate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// What a data plane decides by what is sent is what the API says of the object:
// a naive reading of random policies, against the way over the wire.
func TestDecisionsAreThoseOfTheAPI(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	matched, refused := 0, 0
	for range 3000 {
		object := randomPolicy(random)
		in := Input{Config: config, Captured: captured{}, AuthorizationPolicies: []*v1alpha1.AuthorizationPolicy{object}}
		result, err := Translate(in)
		if err != nil {
			t.Fatal(err)
		}
		message := result.Resources[resource.Authorization]["shop/p"].Message.(*security.Authorization)
		policy, err := authz.Parse("shop/p", message)
		if err != nil {
			t.Fatalf("a data plane cannot read it: %v", err)
		}
		for range 20 {
			c := randomConnection(random)
			want := reads(object, c)
			got := authz.Decide(c, []*authz.Policy{policy}).Allowed
			if got != want {
				text, _ := yaml.Marshal(object.Spec)
				t.Fatalf("%+v: allowed %t, want %t, by\n%s", c, got, want, text)
			}
			if matched++; !got {
				refused++
			}
		}
	}
	if refused < matched/10 || refused > matched*9/10 {
		t.Errorf("of %d connections %d are refused: too few of one kind to show anything", matched, refused)
	}
}

// One more rule, or one more field in a rule of an ALLOW, or what nobody can
// enforce here: nothing of it lets in what was refused.
func TestWhatCannotBeEnforcedNeverWidens(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		object := randomPolicy(random)
		if len(object.Spec.Rules) == 0 {
			continue
		}
		changed := object.DeepCopy()
		rule := &changed.Spec.Rules[random.IntN(len(changed.Spec.Rules))]
		bad := random.IntN(2) == 0
		switch {
		case bad:
			rule.When = append(rule.When, v1alpha1.Condition{Key: "source.ip", Values: []v1alpha1.StringMatch{"10.0.0.0/99"}})
		default:
			rule.When = append(rule.When, v1alpha1.Condition{Key: "request.headers[x]", Values: []v1alpha1.StringMatch{"y"}})
		}
		before, after := decider(t, object), decider(t, changed)
		for range 20 {
			if c := randomConnection(random); after(c) && !before(c) {
				text, _ := yaml.Marshal(changed.Spec)
				t.Fatalf("%+v is let in by what cannot be enforced:\n%s", c, text)
			}
		}
	}
}

func decider(t *testing.T, object *v1alpha1.AuthorizationPolicy) func(authz.Connection) bool {
	t.Helper()
	result, err := Translate(Input{Config: config, Captured: captured{}, AuthorizationPolicies: []*v1alpha1.AuthorizationPolicy{object}})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := authz.Parse("shop/p", result.Resources[resource.Authorization]["shop/p"].Message.(*security.Authorization))
	if err != nil {
		t.Fatal(err)
	}
	return func(c authz.Connection) bool { return authz.Decide(c, []*authz.Policy{policy}).Allowed }
}

// reads is the API's own words: see AuthorizationPolicy.
func reads(object *v1alpha1.AuthorizationPolicy, c authz.Connection) bool {
	deny := object.Spec.Action == v1alpha1.AuthorizationDeny
	matches := slices.ContainsFunc(object.Spec.Rules, func(r v1alpha1.AuthorizationRule) bool { return ruleReads(r, c, deny) })
	return matches != deny
}

func ruleReads(r v1alpha1.AuthorizationRule, c authz.Connection, deny bool) bool {
	for _, t := range r.To {
		if o := t.Operation; len(o.Methods)+len(o.Paths) > 0 && !deny {
			return false
		}
	}
	from := len(r.From) == 0 || slices.ContainsFunc(r.From, func(f v1alpha1.RuleFrom) bool { return sourceReads(f.Source, c) })
	to := len(r.To) == 0 || slices.ContainsFunc(r.To, func(t v1alpha1.RuleTo) bool {
		port := fmt.Sprint(c.Destination.Port())
		return one(t.Operation.Ports, t.Operation.NotPorts, func(p v1alpha1.PortNumber) bool { return string(p) == port })
	})
	when := !slices.ContainsFunc(r.When, func(w v1alpha1.Condition) bool { return !conditionReads(w, c) })
	return from && to && when
}

func sourceReads(s v1alpha1.Source, c authz.Connection) bool {
	id := c.Identity
	known := id != spiffe.ID{}
	return one(s.Principals, s.NotPrincipals, func(p v1alpha1.Principal) bool {
		return known && glob(string(p), strings.TrimPrefix(id.String(), "spiffe://"))
	}) &&
		one(s.Namespaces, s.NotNamespaces, func(n v1alpha1.StringMatch) bool { return known && glob(string(n), id.Namespace) }) &&
		one(s.ServiceAccounts, s.NotServiceAccounts, func(a v1alpha1.ServiceAccountName) bool {
			name := string(a)
			if !strings.Contains(name, "/") {
				name = "shop/" + name
			}
			return known && name == id.Namespace+"/"+id.ServiceAccount
		}) &&
		one(s.IPBlocks, s.NotIPBlocks, func(b v1alpha1.IPBlock) bool { return within(string(b), c.Client) })
}

func conditionReads(w v1alpha1.Condition, c authz.Connection) bool {
	return one(w.Values, w.NotValues, func(v v1alpha1.StringMatch) bool {
		switch w.Key {
		case "source.ip":
			return within(string(v), c.Client)
		case "source.namespace":
			return c.Identity != spiffe.ID{} && glob(string(v), c.Identity.Namespace)
		default:
			return string(v) == fmt.Sprint(c.Destination.Port())
		}
	})
}

// one of the values matches, if there are any, and none of the others.
func one[V any](values, not []V, match func(V) bool) bool {
	return (len(values) == 0 || slices.ContainsFunc(values, match)) && !slices.ContainsFunc(not, match)
}

func glob(pattern, value string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok && pattern != "*" {
		return strings.HasPrefix(value, prefix)
	}
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
		return value != "" && strings.HasSuffix(value, suffix)
	}
	return pattern == value
}

func within(block string, addr netip.Addr) bool {
	if a, err := netip.ParseAddr(block); err == nil {
		return a == addr
	}
	return netip.MustParsePrefix(block).Contains(addr)
}

func randomPolicy(random *rand.Rand) *v1alpha1.AuthorizationPolicy {
	p := &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
	p.Spec.Action = pick(random, v1alpha1.AuthorizationAllow, v1alpha1.AuthorizationDeny)
	for range random.IntN(3) {
		var r v1alpha1.AuthorizationRule
		for range random.IntN(3) {
			var s v1alpha1.Source
			s.Principals = some(random, 2, v1alpha1.Principal("cluster.local/ns/shop/sa/web"), "cluster.local/ns/shop/*", "*/sa/web", "*")
			s.NotPrincipals = some(random, 1, v1alpha1.Principal("cluster.local/ns/bank/sa/teller"), "*/sa/evil", "*")
			s.Namespaces = some(random, 1, v1alpha1.StringMatch("shop"), "b*", "*op")
			s.NotNamespaces = some(random, 1, v1alpha1.StringMatch("bank"), "evil*")
			s.ServiceAccounts = some(random, 1, v1alpha1.ServiceAccountName("web"), "bank/teller")
			s.IPBlocks = some(random, 1, v1alpha1.IPBlock("10.0.0.0/8"), "10.1.1.1", "2001:db8::/32")
			s.NotIPBlocks = some(random, 1, v1alpha1.IPBlock("10.2.0.0/16"))
			if len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces)+len(s.ServiceAccounts)+len(s.IPBlocks)+len(s.NotIPBlocks) > 0 {
				r.From = append(r.From, v1alpha1.RuleFrom{Source: s})
			}
		}
		for range random.IntN(3) {
			var o v1alpha1.Operation
			o.Ports = some(random, 2, v1alpha1.PortNumber("80"), "443")
			o.NotPorts = some(random, 1, v1alpha1.PortNumber("443"))
			if random.IntN(8) == 0 {
				o.Methods = []v1alpha1.StringMatch{"GET"}
			}
			if len(o.Ports)+len(o.NotPorts)+len(o.Methods) > 0 {
				r.To = append(r.To, v1alpha1.RuleTo{Operation: o})
			}
		}
		if random.IntN(3) == 0 {
			r.When = append(r.When, pick(random,
				v1alpha1.Condition{Key: "source.ip", Values: []v1alpha1.StringMatch{"10.0.0.0/8"}, NotValues: []v1alpha1.StringMatch{"10.1.1.1"}},
				v1alpha1.Condition{Key: "source.namespace", NotValues: []v1alpha1.StringMatch{"bank"}},
				v1alpha1.Condition{Key: "destination.port", Values: []v1alpha1.StringMatch{"80"}}))
		}
		p.Spec.Rules = append(p.Spec.Rules, r)
	}
	return p
}

func pick[T any](random *rand.Rand, from ...T) T { return from[random.IntN(len(from))] }

// some of the values, at most as many; mostly none.
func some[T any](random *rand.Rand, most int, from ...T) (out []T) {
	if random.IntN(4) > 0 {
		return nil
	}
	for range 1 + random.IntN(most) {
		out = append(out, pick(random, from...))
	}
	return out
}

func randomConnection(random *rand.Rand) authz.Connection {
	return authz.Connection{
		Identity: pick(random, spiffe.ID{},
			spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"},
			spiffe.ID{TrustDomain: "cluster.local", Namespace: "bank", ServiceAccount: "teller"},
			spiffe.ID{TrustDomain: "example.org", Namespace: "evil", ServiceAccount: "evil"}),
		Client: pick(random, netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("10.2.0.1"),
			netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")),
		Destination: netip.AddrPortFrom(netip.MustParseAddr("10.9.9.9"), pick(random, uint16(80), 443)),
	}
}
