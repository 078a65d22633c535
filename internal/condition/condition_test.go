package condition

import (
	"strings"
	"testing"
	"time"
)

var request = map[string]any{
	Method: "GET", Path: "/a", Query: "", Host: "cart", Headers: map[string]string{"x-a": "1"}, Principal: "me/you", Audiences: []string{"cart"}, Presenter: "",
	Claims:   map[string]any{"role": "admin", "n": 3.0, "groups": []any{"a", "b"}, "realm": map[string]any{"role": "x"}, "null": nil},
	SourceIP: "10.0.0.1", SourcePrincipal: "cluster.local/ns/shop/sa/web", SourceNamespace: "shop", SourceAccount: "shop/web", DestinationIP: "10.0.0.2", DestinationPort: int64(80),
}

func variables(name string) (any, bool) { v, ok := request[name]; return v, ok }

func TestConditions(t *testing.T) {
	for text, want := range map[string]bool{
		`true`:                                                              true,
		`request.method == 'GET'`:                                           true,
		`request.method in ['PUT', 'POST']`:                                 false,
		`request.path.startsWith('/a')`:                                     true,
		`request.path.matches('^/[a-z]$')`:                                  true,
		`request.headers['x-a'] == '1'`:                                     true,
		`'x-b' in request.headers`:                                          false,
		`request.auth.claims.role == 'admin'`:                               true,
		`request.auth.claims['n'] == 3`:                                     true,
		`has(request.auth.claims.none)`:                                     false,
		`'b' in request.auth.claims.groups`:                                 true,
		`request.auth.claims.realm.role == 'x'`:                             true,
		`request.auth.claims.groups.exists(g, g.startsWith('b'))`:           true,
		`request.auth.principal == 'me/you' && source.namespace == 'shop'`:  true,
		`'cart' in request.auth.audiences`:                                  true,
		`destination.port == 80`:                                            true,
		`request.auth.claims.none == 'x' || request.method == 'GET'`:        true,
		`source.ip == '10.0.0.1' && source.serviceAccount.endsWith('/web')`: true,
	} {
		c, err := Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := c.Holds(variables); got != want || err != nil {
			t.Errorf("%s: %t, %v", text, got, err)
		}
		if want := strings.Contains(text, "destination"); c.OfEndpoint != want {
			t.Errorf("%s: of the endpoint: %t", text, c.OfEndpoint)
		}
	}
}

// What is wrong is said, with its place.
func TestBadConditions(t *testing.T) {
	for text, says := range map[string]string{
		``:                         "1:",
		`request.method ==`:        "1:18",
		`request.methods == 'GET'`: "undeclared reference",
		`requests`:                 "undeclared reference",
		`request.method == 1`:      "no matching overload",
		`request.method`:           "want bool",
		`request.auth.claims.role`: "want bool",
		`request.path.foo()`:       "undeclared reference",
		`destination.port == '80'`: "no matching overload",
		`'a' + 'b'`:                "want bool",
		strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100): "",
		"true" + strings.Repeat(" ", MaxLength):                      "more than",
	} {
		if _, err := Compile(text); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
}

// What cannot be evaluated has no answer.
func TestErrorsAreNoAnswers(t *testing.T) {
	for _, text := range []string{
		`request.auth.claims.none == 'x'`, `request.auth.claims.role > 3`, `request.headers['none'] == ''`, `1 / int(request.auth.claims.n - 3.0) == 1`,
		`request.auth.claims.groups[7] == 'a'`, `request.path.matches(request.auth.claims.role + '(')`, `request.auth.claims['null'].x == 'a'`,
	} {
		c, err := Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := c.Holds(variables); err == nil {
			t.Errorf("%s: %t", text, got)
		}
	}
	c, err := Compile(`request.method != 'PUT'`)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Holds(func(string) (any, bool) { return nil, false }); err == nil {
		t.Errorf("of a variable that nobody knows: %t", got)
	}
}

// Nobody's request takes longer than the cost allows.
func TestCostIsBounded(t *testing.T) {
	many := make([]any, 2000)
	for i := range many {
		many[i] = "a"
	}
	huge := map[string]any{Claims: map[string]any{"l": many, "s": strings.Repeat("a", 16<<10)}, Path: strings.Repeat("a", 16<<10)}
	for _, text := range []string{
		`request.auth.claims.l.all(a, request.auth.claims.l.all(b, request.auth.claims.l.all(c, a == b && b == c)))`,
		`request.auth.claims.l.all(a, request.path.matches('(a*)*b') || true)`,
		`request.auth.claims.l.map(a, request.auth.claims.s + a).all(x, x.contains('b') || true)`,
	} {
		c, err := Compile(text)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		got, err := c.Holds(func(name string) (any, bool) { v, ok := huge[name]; return v, ok })
		if err == nil || !strings.Contains(err.Error(), "cost limit") {
			t.Errorf("%s: %t, %v", text, got, err)
		}
		took := time.Since(began)
		t.Log(took)
		if took > time.Second {
			t.Errorf("%s took %v", text, took)
		}
	}
}

// FuzzCondition: whatever somebody writes is refused or ends in time, whatever a request
// has in it.
func FuzzCondition(f *testing.F) {
	for _, text := range []string{
		`request.method == 'GET' && request.headers['x-a'] == '1'`, `request.auth.claims.l.all(a, request.auth.claims.l.exists(b, a == b))`,
		`request.path.matches('(a*)*b')`, `request.auth.claims.l.map(a, request.auth.claims.s + a).size() > 0`, `[1,2,3].map(x, [x, x, x]) == []`,
		`timestamp('2020-01-01T00:00:00Z') < timestamp('2021-01-01T00:00:00Z')`, `int(request.auth.claims.s) / 0 == 1`, `string(b'\xff') == request.query`, `dyn(request.auth.claims) == dyn(1)`,
		`request.auth.audiences.exists_one(a, a.startsWith('x') ? true : false)`, `source.ip in ['a'] || destination.port > 1`, `{'a': request.path}['b'] == 'c'`, `request.auth.claims.l.all(a, request.auth.claims.l.all(b, request.auth.claims.l.all(c, c == a || true)))`, `duration('1h') + duration('1s') == duration('x')`,
	} {
		f.Add(text, "a", "b")
	}
	list := make([]any, 500)
	for i := range list {
		list[i] = strings.Repeat("a", i)
	}
	f.Fuzz(func(t *testing.T, text, path, claim string) {
		began := time.Now()
		c, err := Compile(text)
		if err != nil {
			return
		}
		values := map[string]any{
			Method: "GET", Path: path, Query: "?" + claim, Host: "cart", Headers: map[string]string{"x-a": claim}, Principal: claim, Audiences: []string{claim, path}, Presenter: path,
			Claims: map[string]any{"l": list, "s": strings.Repeat("a", 16<<10), "c": claim, "n": 1.5, "o": map[string]any{"c": claim}, "null": nil}, SourceIP: "10.0.0.1",
			SourcePrincipal: claim, SourceNamespace: "shop", SourceAccount: "shop/web", DestinationIP: "10.0.0.2", DestinationPort: int64(80),
		}
		first, err := c.Holds(func(name string) (any, bool) { v, ok := values[name]; return v, ok })
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("%q took %v", text, took)
		}
		again, later := c.Holds(func(name string) (any, bool) { v, ok := values[name]; return v, ok })
		if first != again || (err == nil) != (later == nil) || err != nil && first {
			t.Fatalf("%q is %t, %v, and then %t, %v", text, first, err, again, later)
		}
	})
}
