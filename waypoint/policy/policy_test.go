package policy

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

func exact(values ...string) (out []*mesh.StringPattern) {
	for _, v := range values {
		out = append(out, &mesh.StringPattern{Match: &mesh.StringPattern_Exact{Exact: v}})
	}
	return out
}

func prefix(v string) []*mesh.StringPattern {
	return []*mesh.StringPattern{{Match: &mesh.StringPattern_Prefix{Prefix: v}}}
}

func template(v string) []*mesh.StringPattern {
	return []*mesh.StringPattern{{Match: &mesh.StringPattern_Template{Template: v}}}
}

func present() []*mesh.StringPattern {
	return []*mesh.StringPattern{{Match: &mesh.StringPattern_Present{Present: true}}}
}

func from(s *mesh.RequestSource) *mesh.RequestRule {
	return &mesh.RequestRule{From: []*mesh.RequestSource{s}}
}
func to(o *mesh.RequestOperation) *mesh.RequestRule {
	return &mesh.RequestRule{To: []*mesh.RequestOperation{o}}
}
func when(key string, values, not []*mesh.StringPattern) *mesh.RequestRule {
	return &mesh.RequestRule{When: []*mesh.RequestCondition{{Key: key, Values: values, NotValues: not}}}
}

func policy(action mesh.RequestPolicy_Action, rules ...*mesh.RequestRule) *mesh.RequestPolicy {
	return &mesh.RequestPolicy{Namespace: "shop", Name: "p", Action: action, Rules: rules}
}

// someone is a GET of /items/7/price from web, with two fields x-team.
func someone() Subject {
	return Subject{
		Identity:    spiffe.ID{TrustDomain: "cluster.local", Namespace: "web", ServiceAccount: "front"},
		Client:      netip.MustParseAddr("10.1.2.3"),
		Destination: netip.MustParseAddrPort("10.9.9.9:8080"),
		Request: &request.Request{
			Method: "GET", Host: "cart.shop", Path: "/items/7/price",
			Fields: []http1.Field{{Name: "x-team", Value: "a"}, {Name: "x-team", Value: "b"}, {Name: "x-raw", Value: "\xff"}},
		},
	}
}

// Does a rule match: as one of a policy that denies, and of one that allows.
func TestRules(t *testing.T) {
	range24 := &mesh.AddressRange{Address: []byte{10, 1, 2, 0}, Length: 24}
	elsewhere := &mesh.AddressRange{Address: []byte{10, 8, 0, 0}, Length: 16}
	tests := []struct {
		name         string
		rule         *mesh.RequestRule
		deny, allow  bool // with a request
		tDeny, tWant bool // of a connection without one
	}{
		{"everything", &mesh.RequestRule{}, true, true, true, true},
		{"principal", from(&mesh.RequestSource{Principals: exact("cluster.local/ns/web/sa/front")}), true, true, true, true},
		{"another principal", from(&mesh.RequestSource{Principals: exact("cluster.local/ns/web/sa/back")}), false, false, false, false},
		{"a literal's dot is a dot", from(&mesh.RequestSource{Principals: exact("cluster.local/ns/web/sa/fron.")}), false, false, false, false},
		{"not a principal", from(&mesh.RequestSource{NotPrincipals: exact("cluster.local/ns/web/sa/front")}), false, false, false, false},
		{"namespace", from(&mesh.RequestSource{Namespaces: prefix("we")}), true, true, true, true},
		{"service account", from(&mesh.RequestSource{ServiceAccounts: []string{"web/front"}}), true, true, true, true},
		{"not this service account", from(&mesh.RequestSource{NotServiceAccounts: []string{"web/front"}}), false, false, false, false},
		{"address", from(&mesh.RequestSource{IpBlocks: []*mesh.AddressRange{range24}}), true, true, true, true},
		{"another address", from(&mesh.RequestSource{IpBlocks: []*mesh.AddressRange{elsewhere}}), false, false, false, false},
		{"an address that means nothing", from(&mesh.RequestSource{IpBlocks: []*mesh.AddressRange{{Address: []byte{1}, Length: 8}}}), true, false, true, false},
		{"a token, which nobody has shown", from(&mesh.RequestSource{RequestPrincipals: present()}), false, false, false, false},
		{"no token", from(&mesh.RequestSource{NotRequestPrincipals: present()}), true, true, true, true},
		{"a source that says nothing", from(&mesh.RequestSource{}), true, false, true, false},

		{"method", to(&mesh.RequestOperation{Methods: exact("GET", "HEAD")}), true, true, true, false},
		{"another method", to(&mesh.RequestOperation{Methods: exact("POST")}), false, false, true, false},
		{"not this method", to(&mesh.RequestOperation{NotMethods: exact("GET")}), false, false, true, false},
		{"host, whoever wrote it in capitals", to(&mesh.RequestOperation{Hosts: exact("Cart.Shop")}), true, true, true, false},
		{"path", to(&mesh.RequestOperation{Paths: prefix("/items")}), true, true, true, false},
		{"template", to(&mesh.RequestOperation{Paths: template("/items/{*}/price")}), true, true, true, false},
		{"template of any depth", to(&mesh.RequestOperation{Paths: template("/{**}/price")}), true, true, true, false},
		{"template of another depth", to(&mesh.RequestOperation{Paths: template("/{*}/price")}), false, false, true, false},
		{"port", to(&mesh.RequestOperation{Ports: []uint32{8080}}), true, true, true, true},
		{"another port", to(&mesh.RequestOperation{Ports: []uint32{80}}), false, false, false, false},
		{"another port and a path", to(&mesh.RequestOperation{Ports: []uint32{80}, Paths: prefix("/")}), false, false, false, false},
		{"an operation that says nothing", to(&mesh.RequestOperation{}), true, false, true, false},

		{"a field, one of whose values is it", when("request.headers[X-Team]", exact("a"), nil), true, false, true, false},
		{"a field, all of whose values are it", when("request.headers[x-team]", exact("a", "b"), nil), true, true, true, false},
		{"a field, one of whose values is none of them", when("request.headers[x-team]", nil, exact("a")), true, false, true, false},
		{"a field that is not there", when("request.headers[x-none]", exact("a"), nil), false, false, true, false},
		{"not, of a field that is not there", when("request.headers[x-none]", nil, exact("a")), true, true, true, false},
		{"bytes that are no text", when("request.headers[x-raw]", nil, exact("a")), true, true, true, false},
		{"address as a condition", when("source.ip", exact("10.1.0.0/16"), nil), true, true, true, true},
		{"address as a condition, nonsense", when("source.ip", exact("nonsense"), nil), true, false, true, false},
		{"port as a condition", when("destination.port", exact("8080"), nil), true, true, true, true},
		{"an attribute that is not known", when("request.weather", exact("fine"), nil), true, false, true, false},
		{"a condition without values", when("source.ip", nil, nil), true, false, true, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, silent := someone(), someone()
			silent.Request = nil
			for _, c := range []struct {
				what   string
				s      Subject
				action mesh.RequestPolicy_Action
				passes bool
			}{
				{"DENY", s, mesh.RequestPolicy_DENY, !test.deny},
				{"ALLOW", s, mesh.RequestPolicy_ALLOW, test.allow},
				{"DENY of a connection", silent, mesh.RequestPolicy_DENY, !test.tDeny},
				{"ALLOW of a connection", silent, mesh.RequestPolicy_ALLOW, test.tWant},
			} {
				if _, err := Decide(c.s, []*mesh.RequestPolicy{policy(c.action, test.rule)}); (err == nil) != c.passes {
					t.Errorf("%s: %v, want passing %t", c.what, err, c.passes)
				}
			}
		})
	}
}

func TestWhatDeniesGoesBeforeWhatAllows(t *testing.T) {
	all, none := &mesh.RequestRule{}, to(&mesh.RequestOperation{Methods: exact("PUT")})
	dry := policy(mesh.RequestPolicy_DENY, all)
	dry.DryRun = true
	invalid := policy(mesh.RequestPolicy_ALLOW, all)
	invalid.Invalid = "spec.rules: nonsense"
	tests := []struct {
		name     string
		policies []*mesh.RequestPolicy
		passes   bool
	}{
		{"none", nil, true},
		{"one that allows", []*mesh.RequestPolicy{policy(mesh.RequestPolicy_ALLOW, all)}, true},
		{"one that allows, without rules", []*mesh.RequestPolicy{policy(mesh.RequestPolicy_ALLOW)}, false},
		{"one that denies, without rules", []*mesh.RequestPolicy{policy(mesh.RequestPolicy_DENY)}, true},
		{"two that allow, one matches", []*mesh.RequestPolicy{policy(mesh.RequestPolicy_ALLOW, none), policy(mesh.RequestPolicy_ALLOW, all)}, true},
		{"both match", []*mesh.RequestPolicy{policy(mesh.RequestPolicy_ALLOW, all), policy(mesh.RequestPolicy_DENY, all)}, false},
		{"one that asks somebody", []*mesh.RequestPolicy{policy(mesh.RequestPolicy_CUSTOM, none)}, false},
		{"one of which nobody knows what it does", []*mesh.RequestPolicy{policy(mesh.RequestPolicy_ACTION_UNSPECIFIED, none)}, false},
		{"one that means nothing", []*mesh.RequestPolicy{invalid}, false},
		{"one that is not in force", []*mesh.RequestPolicy{dry}, true},
	}
	for _, test := range tests {
		if _, err := Decide(someone(), test.policies); (err == nil) != test.passes {
			t.Errorf("%s: %v, want passing %t", test.name, err, test.passes)
		}
	}
	if would, err := Decide(someone(), []*mesh.RequestPolicy{dry}); err != nil || len(would) != 1 {
		t.Errorf("what would deny: %v (%v)", would, err)
	}
}

// Whatever there is: one more that denies never lets more through.
func TestOneMoreThatDeniesNeverWidens(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	values := []string{"cluster.local/ns/web/sa/front", "web", "GET", "/items/7/price", "cart.shop", "x"}
	pattern := func() []*mesh.StringPattern {
		switch r.IntN(4) {
		case 0:
			return nil
		case 1:
			return prefix(values[r.IntN(len(values))][:1])
		case 2:
			return present()
		}
		return exact(values[r.IntN(len(values))])
	}
	rule := func() *mesh.RequestRule {
		out := &mesh.RequestRule{}
		if r.IntN(2) == 0 {
			out.From = []*mesh.RequestSource{{Principals: pattern(), NotPrincipals: pattern(), Namespaces: pattern()}}
		}
		if r.IntN(2) == 0 {
			out.To = []*mesh.RequestOperation{{Methods: pattern(), NotPaths: pattern(), Hosts: pattern()}}
		}
		if r.IntN(3) == 0 {
			out.When = []*mesh.RequestCondition{{Key: "request.headers[x-team]", Values: pattern(), NotValues: pattern()}}
		}
		return out
	}
	passed, denied := 0, 0
	for range 20000 {
		var policies []*mesh.RequestPolicy
		for range r.IntN(3) {
			policies = append(policies, policy([]mesh.RequestPolicy_Action{mesh.RequestPolicy_ALLOW, mesh.RequestPolicy_DENY}[r.IntN(2)], rule()))
		}
		s := someone()
		if r.IntN(3) == 0 {
			s.Request = nil
		}
		if r.IntN(3) == 0 {
			s.Identity = spiffe.ID{}
		}
		_, before := Decide(s, policies)
		_, after := Decide(s, append(policies, policy(mesh.RequestPolicy_DENY, rule())))
		if before != nil && after == nil {
			t.Fatalf("one more that denies lets through what was denied: %v", policies)
		}
		if after == nil {
			passed++
		} else {
			denied++
		}
	}
	if passed == 0 || denied == 0 {
		t.Errorf("%d passed, %d denied: this shows nothing", passed, denied)
	}
}
