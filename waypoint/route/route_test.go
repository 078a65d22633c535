package route_test

import (
	"fmt"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

func exact(path string) *mesh.RouteMatch {
	return &mesh.RouteMatch{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Exact{Exact: path}}}
}

func prefix(path string) *mesh.RouteMatch {
	return &mesh.RouteMatch{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Prefix{Prefix: path}}}
}

func regex(path string) *mesh.RouteMatch {
	return &mesh.RouteMatch{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Regex{Regex: path}}}
}

func header(m *mesh.RouteMatch, name, value string) *mesh.RouteMatch {
	m.Headers = append(m.Headers, &mesh.ValueMatch{Name: name, Match: &mesh.ValueMatch_Exact{Exact: value}})
	return m
}

func query(m *mesh.RouteMatch, name, value string) *mesh.RouteMatch {
	m.QueryParams = append(m.QueryParams, &mesh.ValueMatch{Name: name, Match: &mesh.ValueMatch_Exact{Exact: value}})
	return m
}

func method(m *mesh.RouteMatch, name string) *mesh.RouteMatch { m.Method = name; return m }

// http is a route whose rules are named by their numbers.
func http(name string, matches ...*mesh.RouteMatch) *mesh.Route {
	r := &mesh.Route{Kind: mesh.Route_HTTP, Namespace: "shop", Name: name}
	for i, m := range matches {
		r.Rules = append(r.Rules, &mesh.RouteRule{Name: fmt.Sprint(i), Matches: []*mesh.RouteMatch{m}})
	}
	return r
}

func read(t *testing.T, method, target string, fields ...http1.Field) *request.Request {
	t.Helper()
	r, err := request.Read(method, "cart.shop:80", target, fields)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

// ruled returns route/rule; empty if there is none.
func ruled(t *route.Table, r *request.Request, namespace string) string {
	m, matched, _ := t.Decide(r, 80, namespace)
	if !matched {
		return ""
	}
	return m.Route.GetName() + "/" + m.Rule.GetName()
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		match  *mesh.RouteMatch
		target string
		want   bool
	}{
		{exact("/a"), "/a", true}, {exact("/a"), "/a/", false}, {exact("/a"), "/A", false}, {exact("/a"), "/a?x", true}, {exact("/a"), "/b/../a", true},
		{prefix("/a"), "/a", true}, {prefix("/a"), "/a/b", true}, {prefix("/a"), "/ab", false}, {prefix("/a/"), "/a", true}, {prefix("/"), "/x", true},
		{prefix("/a"), "/%61/b", true}, {prefix("/a"), "/b/..//a", true},
		{regex("/a.*"), "/abc", true}, {regex("/a"), "/ab", false}, {regex("a|/b"), "/xb", false},
		{query(prefix("/"), "q", "a b"), "/?p=1&q=a%20b", true}, {query(prefix("/"), "q", "a"), "/?q=b&q=a", false}, {query(prefix("/"), "q", "a"), "/", false},
		{method(prefix("/"), "POST"), "/", false}, {method(prefix("/"), "GET"), "/", true},
		{header(prefix("/"), "x-a", "1"), "/", true}, {header(prefix("/"), "x-a", "2"), "/", false}, {header(prefix("/"), "x-b", ""), "/", false},
		{header(prefix("/"), "x-m", "1,2"), "/", true},
	} {
		table := route.Compile([]*mesh.Route{http("r", test.match)})
		r := read(t, "GET", test.target, http1.Field{Name: "x-a", Value: "1"}, http1.Field{Name: "x-m", Value: "1"}, http1.Field{Name: "x-m", Value: "2"})
		if got := ruled(table, r, "shop") != ""; got != test.want {
			t.Errorf("%v, %s: %v", test.match, test.target, got)
		}
	}
}

// The specification's order, whatever the order of the rules.
func TestPrecedence(t *testing.T) {
	rules := []*mesh.RouteMatch{
		prefix("/"), regex("/a.*"), prefix("/a"), prefix("/a/b"), exact("/a/b"),
		method(prefix("/m"), "GET"), prefix("/m"), header(prefix("/m"), "x-a", "1"), query(prefix("/m"), "q", "1"),
	}
	for target, want := range map[string]string{"/x": "r/0", "/ax": "r/1", "/a": "r/2", "/a/b/c": "r/3", "/a/b": "r/4", "/m": "r/5"} {
		if got := ruled(route.Compile([]*mesh.Route{http("r", rules...)}), read(t, "GET", target, http1.Field{Name: "x-a", Value: "1"}), "shop"); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	post := read(t, "POST", "/m?q=1", http1.Field{Name: "x-a", Value: "1"})
	if got := ruled(route.Compile([]*mesh.Route{http("r", rules...)}), post, "shop"); got != "r/7" {
		t.Errorf("headers are before parameters: %s", got)
	}
	older, younger := http("z", prefix("/")), http("a", prefix("/"))
	older.Created, younger.Created = 1, 2
	if got := ruled(route.Compile([]*mesh.Route{younger, older}), post, "shop"); got != "z/0" {
		t.Errorf("the older one is first: %s", got)
	}
	younger.Created = 1
	if got := ruled(route.Compile([]*mesh.Route{older, younger}), post, "shop"); got != "a/0" {
		t.Errorf("of the same age the first by name: %s", got)
	}
	named, any := http("named", prefix("/")), http("any", exact("/m"))
	named.Hostnames = []string{"*.shop"}
	if got := ruled(route.Compile([]*mesh.Route{any, named}), post, "shop"); got != "named/0" {
		t.Errorf("a hostname is before a path: %s", got)
	}
}

// Consumer routes are for their own namespace, and take the place of the producer's.
func TestConsumers(t *testing.T) {
	producer, consumer := http("producer", prefix("/a")), http("consumer", prefix("/b"))
	consumer.Namespace, consumer.Consumer = "web", true
	table := route.Compile([]*mesh.Route{producer, consumer})
	for _, test := range []struct{ namespace, target, want string }{
		{"web", "/a", ""}, {"web", "/b", "consumer/0"}, {"shop", "/a", "producer/0"}, {"shop", "/b", ""}, {"", "/a", "producer/0"},
	} {
		if got := ruled(table, read(t, "GET", test.target), test.namespace); got != test.want {
			t.Errorf("%q %s: %q, want %q", test.namespace, test.target, got, test.want)
		}
	}
}

// Where routes are attached, what none of them matches goes nowhere; to another port,
// none are.
func TestAttached(t *testing.T) {
	r := http("r", prefix("/a"))
	r.Port = 80
	table := route.Compile([]*mesh.Route{r, {Kind: mesh.Route_TCP, Namespace: "shop", Name: "tcp"}})
	if _, matched, attached := table.Decide(read(t, "GET", "/b"), 80, "shop"); matched || !attached {
		t.Errorf("matched %v, attached %v", matched, attached)
	}
	if _, _, attached := table.Decide(read(t, "GET", "/b"), 81, "shop"); attached {
		t.Error("attached to another port")
	}
}

func TestGRPC(t *testing.T) {
	match := func(service, method string, regex bool) *mesh.RouteMatch {
		return &mesh.RouteMatch{Grpc: &mesh.GRPCMethodMatch{Service: service, Method: method, Regex: regex}}
	}
	r := http("g", match("", "", false), match("a.B", "", false), match("a.B", "C", false), match("", "D", false), match("x.*", "E", true))
	r.Kind = mesh.Route_GRPC
	table := route.Compile([]*mesh.Route{r})
	call := http1.Field{Name: "content-type", Value: "application/grpc+proto"}
	for target, want := range map[string]string{"/y.Z/F": "g/0", "/a.B/F": "g/1", "/a.BC/F": "g/0", "/a.B/C": "g/2", "/y.Z/D": "g/3", "/x.Y/E": "g/4", "/x.Y/EE": "g/0"} {
		if got := ruled(table, read(t, "POST", target, call), "shop"); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	if got := ruled(table, read(t, "POST", "/a.B/C"), "shop"); got != "" {
		t.Errorf("what is no GRPC has %s", got)
	}
}

// What cannot be read is refused wherever it might have matched.
func TestUnreadableMatchesAreInvalid(t *testing.T) {
	table := route.Compile([]*mesh.Route{http("r", regex("("), exact("/a"))})
	if m, matched, _ := table.Decide(read(t, "GET", "/b"), 80, "shop"); !matched || m.Invalid == "" {
		t.Errorf("%+v, %v", m, matched)
	}
	if m, matched, _ := table.Decide(read(t, "GET", "/a"), 80, "shop"); !matched || m.Invalid != "" {
		t.Errorf("%+v, %v", m, matched)
	}
}
