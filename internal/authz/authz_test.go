package authz_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

var web = authz.Connection{
	Identity:    spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"},
	Client:      netip.MustParseAddr("10.0.0.1"),
	Destination: netip.MustParseAddrPort("10.0.0.2:8080"),
}

// nobody is web without a proof of who it is.
var nobody = authz.Connection{Client: web.Client, Destination: web.Destination}

var present = &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}

// one is a policy with one match.
func one(action security.Action, m *security.Match) *security.Authorization {
	return &security.Authorization{
		Namespace: "shop", Name: "p", Action: action,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}},
	}
}

func allowed(t *testing.T, c authz.Connection, policies ...*security.Authorization) bool {
	t.Helper()
	return authz.Decide(c, compile(policies)).Allowed
}

// The shapes that the protocol gives a meaning of their own.
func TestShapes(t *testing.T) {
	anyone := &security.Match{Principals: []*security.StringMatch{present}}
	rules := func(r ...*security.Rule) []*security.Rule { return r }
	for name, c := range map[string]struct {
		rules   []*security.Rule
		matches bool
	}{
		"no rules":                      {nil, false},
		"a rule without clauses":        {rules(&security.Rule{}), true},
		"a clause without matches":      {rules(&security.Rule{Clauses: []*security.Clause{{}}}), true},
		"an empty match":                {rules(&security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{{}}}}}), false},
		"an empty match beside another": {rules(&security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{{}, anyone}}}}), true},
		"two clauses, one of which":     {rules(&security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{anyone}}, {Matches: []*security.Match{{}}}}}), false},
		"two rules, one of which":       {rules(&security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{{}}}}}, &security.Rule{}), true},
	} {
		for _, action := range []security.Action{security.Action_ALLOW, security.Action_DENY} {
			got := allowed(t, web, &security.Authorization{Namespace: "shop", Name: "p", Action: action, Rules: c.rules})
			if want := c.matches == (action == security.Action_ALLOW); got != want {
				t.Errorf("%s, %s: allowed is %t, want %t", name, action, got, want)
			}
		}
	}
}

func TestDenyGoesFirstThenAllow(t *testing.T) {
	all, none := []*security.Rule{{}}, []*security.Rule(nil)
	policy := func(name string, action security.Action, rules []*security.Rule) *security.Authorization {
		return &security.Authorization{Namespace: "shop", Name: name, Action: action, Rules: rules}
	}
	allow, deny := security.Action_ALLOW, security.Action_DENY
	for name, c := range map[string]struct {
		policies []*security.Authorization
		allowed  bool
		reason   authz.Reason
		decided  string
	}{
		"nothing":                      {nil, true, authz.NoPolicy, ""},
		"a DENY that does not match":   {[]*security.Authorization{policy("d", deny, none)}, true, authz.NoPolicy, ""},
		"a DENY that does":             {[]*security.Authorization{policy("d", deny, all), policy("a", allow, all)}, false, authz.Denied, "shop/d"},
		"an ALLOW that does not match": {[]*security.Authorization{policy("a", allow, none), policy("d", deny, none)}, false, authz.NotAllowed, "shop/a"},
		"one of two ALLOWs matches":    {[]*security.Authorization{policy("a", allow, none), policy("b", allow, all)}, true, authz.Allowed, "shop/b"},
	} {
		d := authz.Decide(web, compile(c.policies))
		decided := ""
		if d.Policy != nil {
			decided = d.Policy.Name
		}
		if d.Allowed != c.allowed || d.Reason != c.reason || decided != c.decided {
			t.Errorf("%s: %t, %s by %q, want %t, %s by %q", name, d.Allowed, d.Reason, decided, c.allowed, c.reason, c.decided)
		}
	}
}

// Strict mutual TLS is a DENY of those who have no identity.
func TestWhoProvesNothing(t *testing.T) {
	strict := one(security.Action_DENY, &security.Match{NotPrincipals: []*security.StringMatch{present}})
	if allowed(t, nobody, strict) || !allowed(t, web, strict) {
		t.Error("a DENY of not_principals presence is not one of plaintext")
	}
	empty := &security.StringMatch{MatchType: &security.StringMatch_Prefix{}}
	for name, m := range map[string]*security.Match{
		"presence":              {Principals: []*security.StringMatch{present}},
		"an empty prefix":       {Principals: []*security.StringMatch{empty}},
		"an empty exact":        {Principals: []*security.StringMatch{exactly("")}},
		"a namespace":           {Namespaces: []*security.StringMatch{empty}},
		"a namespace, presence": {Namespaces: []*security.StringMatch{present}},
		"a service account":     {ServiceAccounts: []*security.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "web"}}},
	} {
		if allowed(t, nobody, one(security.Action_ALLOW, m)) {
			t.Errorf("%s matches nobody", name)
		}
	}
}

func TestPrincipalsHaveNoScheme(t *testing.T) {
	for value, want := range map[string]bool{
		"cluster.local/ns/shop/sa/web":          true,
		"spiffe://cluster.local/ns/shop/sa/web": false,
		"cluster.local/ns/shop/sa/WEB":          false,
		"cluster.local/ns/shop/sa/we*":          false,
		"clusterXlocal/ns/shop/sa/web":          false,
	} {
		if got := allowed(t, web, one(security.Action_ALLOW, &security.Match{Principals: []*security.StringMatch{exactly(value)}})); got != want {
			t.Errorf("%s: %t", value, got)
		}
	}
}

func TestBlocks(t *testing.T) {
	block := func(text string) *security.Address {
		p := netip.MustParsePrefix(text)
		return &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
	}
	for _, c := range []struct {
		block, client string
		want          bool
	}{
		{"10.0.0.0/8", "10.255.0.1", true},
		{"10.9.9.9/8", "10.1.0.1", true}, // host bits do not count
		{"10.0.0.1/32", "10.0.0.2", false},
		{"0.0.0.0/0", "203.0.113.9", true},
		{"0.0.0.0/0", "fd00::1", false},
		{"::/0", "10.0.0.1", false},
		{"::ffff:10.0.0.0/104", "10.0.0.1", true},
		{"10.0.0.0/8", "::ffff:10.0.0.1", true},
		{"fd00::/8", "fd12::1", true},
		{"fe80::/10", "fe80::1%eth0", true},
	} {
		connection := authz.Connection{Client: netip.MustParseAddr(c.client), Destination: web.Destination}
		if got := allowed(t, connection, one(security.Action_ALLOW, &security.Match{SourceIps: []*security.Address{block(c.block)}})); got != c.want {
			t.Errorf("%s in %s: %t", c.client, c.block, got)
		}
	}
}

// What cannot be read denies: in a DENY it is a match, in an ALLOW none, in a
// negated list too; and the error says where it is.
func TestUnreadableValuesDeny(t *testing.T) {
	unknown := &security.StringMatch{}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1))
	narrowed := exactly("shop")
	narrowed.ProtoReflect().SetUnknown(unknown.ProtoReflect().GetUnknown())
	for name, c := range map[string]struct {
		match *security.Match
		field string
	}{
		"not UTF-8":                   {&security.Match{Principals: []*security.StringMatch{exactly("a\xff")}}, "principals[0]"},
		"not UTF-8, negated":          {&security.Match{NotPrincipals: []*security.StringMatch{exactly("a\xff")}}, "not_principals[0]"},
		"no match type":               {&security.Match{Namespaces: []*security.StringMatch{exactly("x"), {}}}, "namespaces[1]"},
		"unknown match type":          {&security.Match{Namespaces: []*security.StringMatch{unknown}}, "namespaces[0]"},
		"unknown match type, negated": {&security.Match{NotNamespaces: []*security.StringMatch{exactly("x"), unknown}}, "not_namespaces[1]"},
		"a value that says more":      {&security.Match{Namespaces: []*security.StringMatch{narrowed}}, "namespaces[0]"},
		"length of a block":           {&security.Match{SourceIps: []*security.Address{{Address: []byte{10, 0, 0, 1}, Length: 33}}}, "source_ips[0]"},
		"length of a block, negated":  {&security.Match{NotSourceIps: []*security.Address{{Address: []byte{10, 0, 0, 1}, Length: 33}}}, "not_source_ips[0]"},
		"three bytes":                 {&security.Match{NotDestinationIps: []*security.Address{{Address: []byte{10, 0, 0}}}}, "not_destination_ips[0]"},
		"a mapped block":              {&security.Match{DestinationIps: []*security.Address{{Address: netip.MustParseAddr("::ffff:0.0.0.0").AsSlice(), Length: 90}}}, "destination_ips[0]"},
		"port 65616":                  {&security.Match{DestinationPorts: []uint32{8080 + 65536}}, "destination_ports[0]"},
		"port 0, negated":             {&security.Match{NotDestinationPorts: []uint32{0}}, "not_destination_ports[0]"},
		"half an account":             {&security.Match{ServiceAccounts: []*security.ServiceAccountMatch{{Namespace: "x"}}}, "service_accounts[0]: serviceAccount"},
		"half an account, negated":    {&security.Match{NotServiceAccounts: []*security.ServiceAccountMatch{{ServiceAccount: "x"}}}, "not_service_accounts[0]: namespace"},
	} {
		for _, action := range []security.Action{security.Action_ALLOW, security.Action_DENY} {
			a := one(action, c.match)
			p, err := authz.Parse("shop/p", a)
			if field := "rules[0].clauses[0].matches[0]." + c.field; err == nil || !strings.HasPrefix(err.Error(), field) || p.Err != err {
				t.Errorf("%s: the error %v does not name %s", name, err, field)
			}
			if authz.Decide(web, []*authz.Policy{p}).Allowed {
				t.Errorf("%s: %s lets in", name, action)
			}
		}
	}
}

// A value that cannot be read takes nothing from the others.
func TestUnreadableValuesBesideOthers(t *testing.T) {
	good, bad := exactly("shop"), &security.StringMatch{}
	if !allowed(t, web, one(security.Action_ALLOW, &security.Match{Namespaces: []*security.StringMatch{bad, good}})) {
		t.Error("an ALLOW does not let in what another of its values does")
	}
	if allowed(t, web, one(security.Action_ALLOW, &security.Match{NotNamespaces: []*security.StringMatch{bad, exactly("bank")}})) {
		t.Error("an ALLOW lets in what it may exclude")
	}
	other := web
	other.Destination = netip.MustParseAddrPort("10.0.0.2:9090")
	deny := one(security.Action_DENY, &security.Match{Namespaces: []*security.StringMatch{bad}, DestinationPorts: []uint32{8080}})
	if allowed(t, web, deny) || !allowed(t, other, deny) {
		t.Error("a DENY for one port is not one for that port")
	}
}

// A field that this version does not know may be one that narrows.
func TestUnknownFieldsDeny(t *testing.T) {
	extra := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	build := func() (*security.Authorization, *security.Rule, *security.Clause, *security.Match) {
		m := &security.Match{Principals: []*security.StringMatch{present}}
		c := &security.Clause{Matches: []*security.Match{m}}
		r := &security.Rule{Clauses: []*security.Clause{c}}
		return &security.Authorization{Namespace: "shop", Name: "p", Rules: []*security.Rule{r}}, r, c, m
	}
	for where := range 4 {
		a, r, c, m := build()
		switch where {
		case 0:
			a.ProtoReflect().SetUnknown(extra)
		case 1:
			r.ProtoReflect().SetUnknown(extra)
		case 2:
			c.ProtoReflect().SetUnknown(extra)
		case 3:
			m.ProtoReflect().SetUnknown(extra)
		}
		if p, err := authz.Parse("shop/p", a); err == nil || authz.Decide(web, []*authz.Policy{p}).Allowed {
			t.Errorf("%d: let in, error %v", where, err)
		}
	}
	if a, _, _, _ := build(); !allowed(t, web, a) {
		t.Error("without them it is not let in")
	}
}

func TestUnreadablePoliciesDenyEverything(t *testing.T) {
	good := func() *security.Authorization {
		return &security.Authorization{Namespace: "shop", Name: "p", Scope: security.Scope_WORKLOAD_SELECTOR, Rules: []*security.Rule{{}}}
	}
	if p, err := authz.Parse("shop/p", good()); err != nil || p.Scope != authz.Selector {
		t.Fatalf("%v, %v", p, err)
	}
	for name, c := range map[string]struct {
		change func(*security.Authorization)
		field  string
		scope  authz.Scope
	}{
		"action":       {func(a *security.Authorization) { a.Action = 2 }, "action: ", authz.Selector},
		"scope":        {func(a *security.Authorization) { a.Scope = 3 }, "scope: ", authz.Global},
		"no name":      {func(a *security.Authorization) { a.Name = "" }, "name: ", authz.Global},
		"another name": {func(a *security.Authorization) { a.Name = "q" }, "name: ", authz.Global},
		"no namespace": {func(a *security.Authorization) { a.Namespace = "" }, "namespace: ", authz.Global},
		"too large": {func(a *security.Authorization) {
			a.Rules[0].Clauses = []*security.Clause{{Matches: []*security.Match{{DestinationPorts: make([]uint32, 70_000)}}}}
		}, "rules", authz.Selector},
	} {
		a := good()
		c.change(a)
		p, err := authz.Parse("shop/p", a)
		if err == nil || !strings.HasPrefix(err.Error(), c.field) || !errors.Is(p.Err, err) && p.Err == nil {
			t.Errorf("%s: error %v", name, err)
		}
		if p.Scope != c.scope {
			t.Errorf("%s: scope %d, want %d", name, p.Scope, c.scope)
		}
		for _, c := range []authz.Connection{web, nobody, {}} {
			if d := authz.Decide(c, []*authz.Policy{p}); d.Allowed || d.Policy != p {
				t.Errorf("%s: %+v", name, d)
			}
		}
	}
}

// A connection of which something is not known is one that cannot be judged.
func TestUnreadableConnections(t *testing.T) {
	change := func(change func(*authz.Connection)) authz.Connection { c := web; change(&c); return c }
	for name, c := range map[string]struct {
		connection authz.Connection
		yes, no    *security.Match
	}{
		"identity that is not UTF-8": {
			change(func(c *authz.Connection) { c.Identity.ServiceAccount = "we\xffb" }),
			&security.Match{Principals: []*security.StringMatch{present}}, &security.Match{NotPrincipals: []*security.StringMatch{exactly("x")}},
		},
		"half an identity": {
			change(func(c *authz.Connection) { c.Identity.Namespace = "" }),
			&security.Match{Namespaces: []*security.StringMatch{present}}, &security.Match{NotNamespaces: []*security.StringMatch{exactly("x")}},
		},
		"no client": {
			change(func(c *authz.Connection) { c.Client = netip.Addr{} }),
			&security.Match{SourceIps: []*security.Address{{Address: make([]byte, 4)}}}, &security.Match{NotSourceIps: []*security.Address{{Address: make([]byte, 16), Length: 128}}},
		},
		"no destination": {
			change(func(c *authz.Connection) { c.Destination = netip.AddrPort{} }),
			&security.Match{DestinationIps: []*security.Address{{Address: make([]byte, 4)}}}, &security.Match{NotDestinationPorts: []uint32{1}},
		},
	} {
		for _, m := range []*security.Match{c.yes, c.no} {
			if allowed(t, c.connection, one(security.Action_ALLOW, m)) {
				t.Errorf("%s: ALLOW %v lets in", name, m)
			}
			if allowed(t, c.connection, one(security.Action_DENY, m)) {
				t.Errorf("%s: DENY %v lets in", name, m)
			}
			if !allowed(t, web, one(security.Action_ALLOW, m)) {
				t.Errorf("%s: ALLOW %v does not let in what is known", name, m)
			}
		}
	}
}

func TestDryRunDecidesNothing(t *testing.T) {
	dry := func(name string, action security.Action, rules ...*security.Rule) *security.Authorization {
		return &security.Authorization{Namespace: "shop", Name: name, Action: action, Rules: rules, DryRun: true}
	}
	d := authz.Decide(web, compile([]*security.Authorization{
		dry("d", security.Action_DENY, &security.Rule{}), dry("b", security.Action_ALLOW), dry("a", security.Action_ALLOW), dry("n", security.Action_DENY),
	}))
	var names []string
	for _, p := range d.WouldDeny {
		names = append(names, p.Name)
	}
	if !d.Allowed || d.Reason != authz.NoPolicy || strings.Join(names, " ") != "shop/a shop/b shop/d" {
		t.Errorf("%+v, would deny %v", d, names)
	}
}
