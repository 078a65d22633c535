package policy_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/policy"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// text writes patterns as AuthorizationPolicy does.
func text(values ...string) (out []*mesh.StringPattern) {
	for _, v := range values {
		p := &mesh.StringPattern{Match: &mesh.StringPattern_Exact{Exact: v}}
		switch {
		case v == "*":
			p.Match = &mesh.StringPattern_Present{Present: true}
		case strings.Contains(v, "{"):
			p.Match = &mesh.StringPattern_Template{Template: v}
		case strings.HasPrefix(v, "*"):
			p.Match = &mesh.StringPattern_Suffix{Suffix: v[1:]}
		case strings.HasSuffix(v, "*"):
			p.Match = &mesh.StringPattern_Prefix{Prefix: v[:len(v)-1]}
		}
		out = append(out, p)
	}
	return out
}

func operation(o *mesh.RequestOperation) *mesh.RequestRule {
	return &mesh.RequestRule{To: []*mesh.RequestOperation{o}}
}

func from(s *mesh.RequestSource) *mesh.RequestRule {
	return &mesh.RequestRule{From: []*mesh.RequestSource{s}}
}

func when(key string, values, not []*mesh.StringPattern) *mesh.RequestRule {
	return &mesh.RequestRule{When: []*mesh.RequestCondition{{Key: key, Values: values, NotValues: not}}}
}

func of(action mesh.RequestPolicy_Action, rules ...*mesh.RequestRule) *mesh.RequestPolicy {
	p := &mesh.RequestPolicy{Namespace: "shop", Name: "p", Action: action, Rules: rules}
	if action == mesh.RequestPolicy_CUSTOM {
		p.Provider = &mesh.AuthorizationProvider{Service: "shop/judge", Port: 80, Timeout: durationpb.New(time.Second)}
	}
	return p
}

func decide(s policy.Subject, all ...*mesh.RequestPolicy) policy.Decision {
	var compiled []*policy.Policy
	for _, p := range all {
		c, _ := policy.Parse(p)
		compiled = append(compiled, c)
	}
	return policy.Decide(&s, compiled)
}

func expr(condition string) *mesh.RequestRule { return &mesh.RequestRule{Condition: condition} }

func subject(t testing.TB, method, host, target string, fields ...string) policy.Subject {
	t.Helper()
	var list []http1.Field
	for i := 0; i < len(fields); i += 2 {
		list = append(list, http1.Field{Name: fields[i], Value: fields[i+1]})
	}
	r, err := request.Read(method, host, target, list)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Subject{
		Request: &r, Identity: spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"},
		Client: netip.MustParseAddr("10.9.0.2"), Endpoint: netip.MustParseAddrPort("10.9.0.3:8080"),
	}
}

// Each rule against requests that it matches, does not match, and of which nobody can
// say: of those a DENY lets through none, nor does an ALLOW.
func TestRules(t *testing.T) {
	claims := &policy.Claims{Issuer: "https://issuer", Subject: "ann", Audiences: []string{"shop", "bank"}, All: map[string]any{
		"groups": []any{"dev", "ops"}, "role": "admin", "n": 1.0, "org": map[string]any{"team": "cart"},
	}}
	get := func(target string, fields ...string) policy.Subject {
		return subject(t, "GET", "cart", target, fields...)
	}
	blocks := func(address ...byte) []*mesh.AddressRange {
		return []*mesh.AddressRange{{Address: address, Length: 16}}
	}
	client := func(addr string) policy.Subject {
		s := get("/")
		s.Client, _ = netip.ParseAddr(addr)
		return s
	}
	token := func(c *policy.Claims) policy.Subject { s := get("/"); s.Claims = c; return s }
	nobody := get("/")
	nobody.Identity = spiffe.ID{}
	type subjects []policy.Subject
	for name, c := range map[string]struct {
		rule             *mesh.RequestRule
		yes, no, neither subjects
	}{
		"everything":      {&mesh.RequestRule{}, subjects{get("/"), nobody}, nil, nil},
		"empty source":    {from(&mesh.RequestSource{}), nil, subjects{get("/")}, nil},
		"empty operation": {operation(&mesh.RequestOperation{}), nil, subjects{get("/")}, nil},
		"methods":         {operation(&mesh.RequestOperation{Methods: text("GET", "PU*")}), subjects{get("/"), subject(t, "PUT", "a", "/")}, subjects{subject(t, "get", "a", "/"), subject(t, "POST", "a", "/")}, nil},
		"paths": {operation(&mesh.RequestOperation{Paths: text("/admin", "/api/*", "*.php", "/a/{*}/c", "/x/{**}/z")}),
			subjects{get("/admin"), get("/admin?x"), get("//admin"), get("/%61dmin"), get("/x/../admin"), get("/api/"), get("/api/v1"), get("/y.php"), get("/a/b/c"), get("/x/z"), get("/x/y/z/z")},
			subjects{get("/administrator"), get("/admin/"), get("/Admin"), get("/api"), get("/a/c"), get("/a/b/b/c"), get("/a//c"), get("/x/y"), get("/y?.php")}, nil},
		"encoded paths": {operation(&mesh.RequestOperation{Paths: text("/v1/a:delete", "/b%21*", "*%40x", "/t/{*}/a%26b", "/%C3%A9", "/%25zz")}),
			subjects{get("/v1/a%3Adelete"), get("/v1/%61%3adelete"), get("/b!"), get("/b%21c"), get("/me@x"), get("/me%40x"), get("/t/%2A/a&b"), get("/%c3%a9"), get("/%25zz")},
			subjects{get("/t/a%26b"), get("/t/x/a%26%26b"), get("/")}, nil},
		"encoded paths in a condition": {expr(`request.path == '/v1/a:delete'`), subjects{get("/v1/a:delete"), get("/v1/a%3Adelete")}, subjects{get("/v1/a")}, nil},
		"unreadable segment":           {operation(&mesh.RequestOperation{Paths: text("/{*}/%7B%2A%7D")}), nil, nil, subjects{get("/a/b")}},
		"not paths":                    {operation(&mesh.RequestOperation{NotPaths: text("/public")}), subjects{get("/private")}, subjects{get("/public"), get("/./public")}, nil},
		"literals":                     {operation(&mesh.RequestOperation{Paths: text("/a.c", "/b+")}), subjects{get("/a.c"), get("/b+")}, subjects{get("/abc"), get("/bb")}, nil},
		"hosts": {operation(&mesh.RequestOperation{Hosts: text("Cart", "*.example", "bank:81")}),
			subjects{subject(t, "GET", "CART", "/"), subject(t, "GET", "cart:80", "/"), subject(t, "GET", "cart.", "/"), subject(t, "GET", "a.example:1", "/"), subject(t, "GET", "bank:81", "/")},
			subjects{subject(t, "GET", "carts", "/"), subject(t, "GET", "bank", "/"), subject(t, "GET", "bank:80", "/")}, nil},
		"hosts at the default port": {operation(&mesh.RequestOperation{Hosts: text("cart:80", "bank:*"), NotHosts: text("*:81")}),
			subjects{subject(t, "GET", "cart", "/"), subject(t, "GET", "cart:80", "/"), subject(t, "GET", "bank", "/"), subject(t, "GET", "bank:82", "/")},
			subjects{subject(t, "GET", "cart:81", "/"), subject(t, "GET", "cart:8080", "/"), subject(t, "GET", "bank:81", "/")}, nil},
		"hosts in another spelling": {operation(&mesh.RequestOperation{Hosts: text("Cart.", "*.Example.", "[2001:DB8:0::1]", "BANK.:81")}),
			subjects{get("/"), subject(t, "GET", "a.example", "/"), subject(t, "GET", "a.example.:1", "/"), subject(t, "GET", "[2001:db8::1]:81", "/"), subject(t, "GET", "bank:81", "/")},
			subjects{subject(t, "GET", "bank", "/"), subject(t, "GET", "[2001:db8::2]", "/")}, nil},
		"the path of all":             {operation(&mesh.RequestOperation{Paths: text("/*", "/admin")}), subjects{get("/"), get("/x")}, nil, subjects{subject(t, "OPTIONS", "cart", "*")}},
		"any path":                    {operation(&mesh.RequestOperation{Paths: text("*")}), subjects{get("/"), subject(t, "OPTIONS", "cart", "*")}, nil, nil},
		"another path":                {operation(&mesh.RequestOperation{Paths: text("/admin*")}), nil, subjects{subject(t, "OPTIONS", "cart", "*")}, nil},
		"ports":                       {operation(&mesh.RequestOperation{Ports: []uint32{8080}}), subjects{get("/")}, nil, nil},
		"principals":                  {from(&mesh.RequestSource{Principals: text("cluster.local/ns/shop/sa/web")}), subjects{get("/")}, subjects{nobody}, nil},
		"service accounts":            {from(&mesh.RequestSource{ServiceAccounts: []string{"shop/web"}, Namespaces: text("sho*")}), subjects{get("/")}, subjects{nobody}, nil},
		"not namespaces":              {from(&mesh.RequestSource{NotNamespaces: text("shop")}), subjects{nobody}, subjects{get("/")}, nil},
		"addresses":                   {from(&mesh.RequestSource{IpBlocks: []*mesh.AddressRange{{Address: []byte{10, 9, 0, 0}, Length: 16}}}), subjects{get("/")}, nil, nil},
		"remote addresses":            {from(&mesh.RequestSource{RemoteIpBlocks: blocks(10, 9, 0, 0)}), subjects{get("/"), get("/", "x-forwarded-for", "192.0.2.1")}, subjects{client("10.8.0.2"), client("2001:db8::1")}, subjects{client("")}},
		"not remote addresses":        {from(&mesh.RequestSource{NotRemoteIpBlocks: blocks(10, 9, 0, 0)}), subjects{client("10.8.0.2")}, subjects{get("/"), get("/", "x-forwarded-for", "192.0.2.1"), client("::ffff:10.9.0.2")}, subjects{client("")}},
		"condition on remote":         {when("remote.ip", text("10.9.0.0/16"), text("10.9.0.1")), subjects{get("/")}, subjects{client("10.9.0.1"), client("10.8.0.2")}, subjects{client("")}},
		"unreadable remote addresses": {when("remote.ip", nil, text("10.9.0")), nil, nil, subjects{get("/")}},
		"a field": {when("request.headers[X-Role]", text("user"), nil),
			subjects{get("/", "x-role", "user"), get("/", "x-role", "user", "x-role", "user"), get("/", "x-role", "user, user")},
			subjects{get("/"), get("/", "x-role", "User"), get("/", "x-role", "users"), get("/", "x-rol", "user")},
			subjects{get("/", "x-role", "user", "x-role", "admin"), get("/", "x-role", "admin,user"), get("/", "x-role", "us\xffer")}},
		"not a field": {when("request.headers[x-role]", nil, text("admin")),
			subjects{get("/"), get("/", "x-role", "user")}, subjects{get("/", "x-role", "admin")},
			subjects{get("/", "x-role", "user", "x-role", "admin"), get("/", "x-role", "user, admin"), get("/", "x-role", "\xff")}},
		"request principals": {from(&mesh.RequestSource{RequestPrincipals: text("https://issuer/*")}), subjects{token(claims)}, subjects{get("/"), token(&policy.Claims{Issuer: "https://issuer"})}, nil},
		"no token":           {from(&mesh.RequestSource{NotRequestPrincipals: text("*")}), subjects{get("/")}, subjects{token(claims)}, nil},
		"audiences":          {when("request.auth.audiences", text("bank"), nil), subjects{token(claims)}, subjects{get("/")}, nil},
		"a claim":            {when("request.auth.claims[role]", text("admin"), nil), subjects{token(claims)}, subjects{get("/"), token(&policy.Claims{})}, nil},
		"a list of claims":   {when("request.auth.claims[groups]", text("ops"), nil), subjects{token(claims)}, nil, nil},
		"a claim in claims":  {when("request.auth.claims[org][team]", text("cart"), nil), subjects{token(claims)}, nil, nil},
		"a number":           {when("request.auth.claims[n]", text("1"), nil), nil, nil, subjects{token(claims)}},
		"destination":        {when("destination.port", text("8080"), nil), subjects{get("/")}, nil, nil},
		"source":             {when("source.ip", text("10.9.0.0/16"), text("10.9.0.1")), subjects{get("/")}, nil, nil},
		"condition": {expr(`request.method == 'GET' && request.path.startsWith('/a') && source.namespace == 'shop' && source.ip == '10.9.0.2' && destination.port == 8080`),
			subjects{get("/a")}, subjects{get("/"), subject(t, "PUT", "cart", "/a")}, nil},
		"condition on a token": {expr(`request.auth.claims.role == 'admin' && 'ops' in request.auth.claims.groups && request.auth.principal == 'https://issuer/ann'`),
			subjects{token(claims)}, subjects{get("/"), token(&policy.Claims{All: map[string]any{"role": "admin"}})}, nil},
		"condition on a claim": {expr(`request.auth.claims.role == 'admin'`), subjects{token(claims)},
			subjects{token(&policy.Claims{All: map[string]any{"role": "user"}})}, subjects{get("/"), token(&policy.Claims{All: map[string]any{"roles": "admin"}})}},
		"condition on none": {expr(`request.auth.principal == ''`), subjects{get("/")}, subjects{token(claims)}, nil},
		"condition on headers": {expr(`request.headers['x-role'] == 'user'`),
			subjects{get("/", "x-role", "user")}, subjects{get("/", "x-role", "user", "x-role", "admin")}, subjects{get("/"), get("/", "x-role", "us\xffer"), get("/", "x-role", "user", "y", "\xff")}},
		"condition that is none":      {expr(`request.method ==`), nil, nil, subjects{get("/")}},
		"condition that names naught": {expr(`request.foo == 'a'`), nil, nil, subjects{get("/")}},
		"condition that is no answer": {expr(`request.method`), nil, nil, subjects{get("/")}},
		"condition beside others": {&mesh.RequestRule{To: []*mesh.RequestOperation{{Methods: text("GET")}}, Condition: `request.path == '/a'`},
			subjects{get("/a")}, subjects{get("/b"), subject(t, "PUT", "cart", "/a")}, nil},
		"condition without end": {expr(`[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, [1,2,3,4,5,6,7,8,9].all(d, [1,2,3,4,5,6,7,8,9].all(e, a+b+c+d+e > 0 && request.method != '')))))`),
			nil, nil, subjects{get("/")}},
		"server name":        {when("connection.sni", text("a"), nil), nil, nil, subjects{get("/")}},
		"connection's field": {when("request.headers[host]", text("cart"), nil), nil, nil, subjects{get("/")}},
		"no values":          {when("source.ip", nil, nil), nil, nil, subjects{get("/")}},
		"unreadable path":    {operation(&mesh.RequestOperation{Paths: text("/a;b")}), nil, nil, subjects{get("/a")}},
		"unreadable prefix":  {operation(&mesh.RequestOperation{NotPaths: text("/a/../b*")}), nil, nil, subjects{get("/a")}},
	} {
		check := func(s policy.Subject, allow, deny bool) {
			t.Helper()
			if got := decide(s, of(mesh.RequestPolicy_ALLOW, c.rule)).Allowed; got != allow {
				t.Errorf("%s: ALLOW lets %+v in: %v", name, *s.Request, got)
			}
			for _, action := range []mesh.RequestPolicy_Action{mesh.RequestPolicy_DENY, mesh.RequestPolicy_CUSTOM} {
				if got := !decide(s, of(action, c.rule)).Allowed; got != deny {
					t.Errorf("%s: %s refuses %+v: %v", name, action, *s.Request, got)
				}
			}
		}
		for _, s := range c.yes {
			check(s, true, true)
		}
		for _, s := range c.no {
			check(s, false, false)
		}
		for _, s := range c.neither {
			check(s, false, true)
		}
	}
}

// What is not understood denies everything, whatever it was meant to do.
func TestUnreadablePoliciesDenyEverything(t *testing.T) {
	extra := []byte{0x98, 0x06, 1} // field 99
	for name, change := range map[string]func(*mesh.RequestPolicy){
		"no action":      func(p *mesh.RequestPolicy) { p.Action = 0 },
		"unknown action": func(p *mesh.RequestPolicy) { p.Action = 9 },
		"unknown field":  func(p *mesh.RequestPolicy) { p.ProtoReflect().SetUnknown(extra) },
		"invalid":        func(p *mesh.RequestPolicy) { p.Invalid = "says nothing" },
		"in a rule":      func(p *mesh.RequestPolicy) { p.Rules[0].ProtoReflect().SetUnknown(extra) },
		"in a source": func(p *mesh.RequestPolicy) {
			p.Rules[0].From = []*mesh.RequestSource{{Namespaces: text("*")}}
			p.Rules[0].From[0].ProtoReflect().SetUnknown(extra)
		},
	} {
		p := of(mesh.RequestPolicy_ALLOW, &mesh.RequestRule{})
		change(p)
		c, err := policy.Parse(p)
		s := subject(t, "GET", "a", "/")
		if err == nil || c.Err == nil || policy.Decide(&s, []*policy.Policy{c}).Allowed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Without an endpoint what speaks of one decides nothing yet; all else does.
func TestBeforeAnEndpointIsChosen(t *testing.T) {
	s := subject(t, "GET", "a", "/")
	s.Endpoint = netip.AddrPort{}
	port := operation(&mesh.RequestOperation{NotPorts: []uint32{1}})
	if !decide(s, of(mesh.RequestPolicy_DENY, port)).Allowed || !decide(s, of(mesh.RequestPolicy_ALLOW, port)).Allowed {
		t.Error("decided by a port that is not known")
	}
	if decide(s, of(mesh.RequestPolicy_DENY, &mesh.RequestRule{})).Allowed {
		t.Error("not denied")
	}
}

// A connection of which no requests are read is let in by nothing that speaks of them.
func TestConnectionsWithoutRequests(t *testing.T) {
	s := subject(t, "GET", "a", "/")
	s.Request = nil
	rule := operation(&mesh.RequestOperation{Methods: text("GET")})
	if decide(s, of(mesh.RequestPolicy_DENY, rule)).Allowed || decide(s, of(mesh.RequestPolicy_ALLOW, rule)).Allowed {
		t.Error("let in")
	}
}

func TestDenyBeforeAllowAndDryRuns(t *testing.T) {
	s := subject(t, "GET", "a", "/")
	allow, deny := of(mesh.RequestPolicy_ALLOW, &mesh.RequestRule{}), of(mesh.RequestPolicy_DENY, &mesh.RequestRule{})
	if d := decide(s, allow, deny); d.Reason != policy.Denied {
		t.Errorf("%+v", d)
	}
	if d := decide(s, of(mesh.RequestPolicy_ALLOW), allow); d.Reason != policy.Allowed {
		t.Errorf("%+v", d)
	}
	if d := decide(s, of(mesh.RequestPolicy_ALLOW)); d.Reason != policy.NotAllowed {
		t.Errorf("%+v", d)
	}
	if d := decide(s, of(mesh.RequestPolicy_DENY)); d.Reason != policy.NoPolicy {
		t.Errorf("%+v", d)
	}
	deny.DryRun = true
	if d := decide(s, deny); !d.Allowed || d.WouldDeny == nil {
		t.Errorf("%+v", d)
	}
}

// FuzzDecide: whatever the policies, one that denies more lets in no more, and a dry run
// decides nothing.
func FuzzDecide(f *testing.F) {
	for _, r := range []*mesh.RequestRule{
		{}, operation(&mesh.RequestOperation{Paths: text("/a/{*}/{**}/b", "/x*"), NotHosts: text("a")}), when("request.headers[a]", text("b"), text("*c")),
	} {
		wire, err := proto.Marshal(of(mesh.RequestPolicy_DENY, r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, wire, "GET", "a", "/a/b/c/b", "b,c")
	}
	f.Fuzz(func(t *testing.T, one, two []byte, method, host, target, value string) {
		a, b := &mesh.RequestPolicy{}, &mesh.RequestPolicy{}
		r, err := request.Read(method, host, target, []http1.Field{{Name: "a", Value: value}})
		if err != nil || proto.Unmarshal(one, a) != nil || proto.Unmarshal(two, b) != nil {
			return
		}
		s := policy.Subject{Request: &r, Client: netip.MustParseAddr("10.0.0.1"), Endpoint: netip.MustParseAddrPort("10.0.0.2:80")}
		before := decide(s, a).Allowed
		if b.Action != mesh.RequestPolicy_ALLOW && decide(s, a, b).Allowed && !before {
			t.Fatalf("%v widens %v", b, a)
		}
		c, err := policy.Parse(a)
		if (err != nil) != (c.Err != nil) {
			t.Fatal(err)
		}
		if a.DryRun && !before {
			t.Fatal("a dry run denied")
		}
	})
}

// A condition about an endpoint decides nothing as long as there is none; one about
// requests denies what has none.
func TestConditionsWithoutWhatTheySpeakOf(t *testing.T) {
	early := subject(t, "GET", "cart", "/")
	early.Endpoint = netip.AddrPort{}
	connection := subject(t, "GET", "cart", "/")
	connection.Request = nil
	for condition, c := range map[string]struct {
		s           policy.Subject
		allow, deny bool
	}{
		`destination.port == 1`:                                {early, true, false},
		`destination.port == 1 || request.method == 'GET'`:     {early, true, false},
		`request.method == 'GET'`:                              {connection, false, true},
		`source.namespace == 'shop'`:                           {connection, true, true},
		`source.namespace == 'bank'`:                           {connection, false, false},
		`source.namespace == 'bank' && request.path == '/any'`: {connection, false, false},
	} {
		if got := decide(c.s, of(mesh.RequestPolicy_ALLOW, expr(condition))).Allowed; got != c.allow {
			t.Errorf("%s: ALLOW lets it in: %t", condition, got)
		}
		if got := !decide(c.s, of(mesh.RequestPolicy_DENY, expr(condition))).Allowed; got != c.deny {
			t.Errorf("%s: DENY refuses it: %t", condition, got)
		}
	}
}

// A provider is asked last, and its word allows nothing that others refuse.
func TestCustomIsAskedLast(t *testing.T) {
	s := subject(t, "GET", "cart", "/")
	named := func(name string, action mesh.RequestPolicy_Action, rules ...*mesh.RequestRule) *mesh.RequestPolicy {
		p := of(action, rules...)
		p.Name = name
		return p
	}
	any, none := &mesh.RequestRule{}, operation(&mesh.RequestOperation{Methods: text("PUT")})
	a, b := named("a", mesh.RequestPolicy_CUSTOM, any), named("b", mesh.RequestPolicy_CUSTOM, any)
	trial := named("t", mesh.RequestPolicy_CUSTOM, any)
	trial.DryRun = true
	for name, c := range map[string]struct {
		policies []*mesh.RequestPolicy
		approved string
		reason   policy.Reason
		asks     string
	}{
		"nobody was asked":    {[]*mesh.RequestPolicy{b, a}, "", policy.NotAsked, "shop/a shop/b"},
		"one agreed":          {[]*mesh.RequestPolicy{b, a}, "shop/a", policy.NotAsked, "shop/b"},
		"both agreed":         {[]*mesh.RequestPolicy{b, a}, "shop/a shop/b", policy.NoPolicy, ""},
		"beside an ALLOW":     {[]*mesh.RequestPolicy{a, named("z", mesh.RequestPolicy_ALLOW, any)}, "shop/a", policy.Allowed, ""},
		"no ALLOW matches":    {[]*mesh.RequestPolicy{a, named("z", mesh.RequestPolicy_ALLOW, none)}, "shop/a", policy.NotAllowed, ""},
		"and nobody asks":     {[]*mesh.RequestPolicy{a, named("z", mesh.RequestPolicy_ALLOW, none)}, "", policy.NotAllowed, ""},
		"a DENY":              {[]*mesh.RequestPolicy{a, named("z", mesh.RequestPolicy_DENY, any)}, "shop/a", policy.Denied, ""},
		"what does not match": {[]*mesh.RequestPolicy{named("a", mesh.RequestPolicy_CUSTOM, none)}, "", policy.NoPolicy, ""},
		"on trial":            {[]*mesh.RequestPolicy{trial}, "", policy.NoPolicy, ""},
	} {
		of := s
		of.Approved = func(p *policy.Policy) bool { return strings.Contains(c.approved, p.Name) }
		d := decide(of, c.policies...)
		var asks []string
		for _, p := range d.Ask {
			asks = append(asks, p.Name)
		}
		if got := strings.Join(asks, " "); d.Reason != c.reason || got != c.asks || d.Allowed != (d.Reason == policy.Allowed || d.Reason == policy.NoPolicy) {
			t.Errorf("%s: %+v, asks %q", name, d, got)
		}
	}
	for name, change := range map[string]func(*mesh.AuthorizationProvider){
		"no Service": func(p *mesh.AuthorizationProvider) { p.Service = "" }, "no port": func(p *mesh.AuthorizationProvider) { p.Port = 0 },
		"a port beyond": func(p *mesh.AuthorizationProvider) { p.Port = 65536 + 80 }, "no timeout": func(p *mesh.AuthorizationProvider) { p.Timeout = nil },
		"a long one":         func(p *mesh.AuthorizationProvider) { p.Timeout = durationpb.New(time.Minute) },
		"more than is known": func(p *mesh.AuthorizationProvider) { p.ProtoReflect().SetUnknown([]byte{0x98, 0x06, 1}) },
	} {
		p := of(mesh.RequestPolicy_CUSTOM, none)
		change(p.Provider)
		if d := decide(s, p); d.Reason != policy.Denied {
			t.Errorf("a provider with %s: %+v", name, d)
		}
	}
}
