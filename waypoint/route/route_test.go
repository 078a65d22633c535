package route_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

func read(t testing.TB, method, host, target string, fields ...http1.Field) *request.Request {
	t.Helper()
	r, err := request.Read(method, host, target, fields)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

func exact(path string) *mesh.RouteMatch {
	return &mesh.RouteMatch{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Exact{Exact: path}}}
}
func prefix(path string) *mesh.RouteMatch {
	return &mesh.RouteMatch{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Prefix{Prefix: path}}}
}
func regex(path string) *mesh.RouteMatch {
	return &mesh.RouteMatch{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Regex{Regex: path}}}
}
func header(name, value string) *mesh.ValueMatch {
	return &mesh.ValueMatch{Name: name, Match: &mesh.ValueMatch_Exact{Exact: value}}
}
func grpc(service, method string) *mesh.RouteMatch {
	return &mesh.RouteMatch{Grpc: &mesh.GRPCMethodMatch{Service: service, Method: method}}
}

// one route, whose rules have a match each, and are named by their number.
func one(name string, matches ...*mesh.RouteMatch) *mesh.Route {
	r := &mesh.Route{Kind: mesh.Route_HTTP, Namespace: "shop", Name: name}
	for i, m := range matches {
		r.Rules = append(r.Rules, &mesh.RouteRule{Name: fmt.Sprint(name, i), Matches: []*mesh.RouteMatch{m}})
	}
	return r
}

func found(m route.Match) string {
	switch {
	case !m.Attached:
		return "the service"
	case m.Rule == nil:
		return "none"
	case m.Invalid != "" || m.Rule.Invalid != "":
		return "invalid"
	}
	return m.Rule.Name
}

// The order of precedence that HTTPRoute has.
func TestPrecedence(t *testing.T) {
	withHeaders := prefix("/h")
	withHeaders.Headers = []*mesh.ValueMatch{header("a", "1"), header("b", "2")}
	withHeader := prefix("/h")
	withHeader.Headers = []*mesh.ValueMatch{header("a", "1")}
	withMethod := prefix("/h")
	withMethod.Method = "PUT"
	withQuery := prefix("/h")
	withQuery.QueryParams = []*mesh.ValueMatch{header("q", "a b")}
	older := one("z", prefix("/age"))
	older.Created = 1
	younger := one("a", prefix("/age"))
	younger.Created = 2
	r := route.Compile([]*mesh.Route{
		one("r", &mesh.RouteMatch{}, prefix("/a"), prefix("/a/b/"), exact("/a/b"), regex("/(a/b/|z)[0-9]+"), withQuery, withHeader, withHeaders, withMethod, prefix("/h")),
		younger, older, one("x", prefix("/name")), one("w", prefix("/name"), prefix("/name")),
	})
	for _, c := range []struct {
		method, target, want string
		fields               []http1.Field
	}{
		{"GET", "/", "r0", nil}, {"GET", "/ab", "r0", nil}, {"GET", "/a", "r1", nil}, {"GET", "/a/", "r1", nil}, {"GET", "/a/c", "r1", nil}, {"GET", "/a/b", "r3", nil},
		{"GET", "/a/b/", "r2", nil}, {"GET", "/a/bc", "r1", nil}, {"GET", "/a/b/7", "r2", nil}, {"GET", "/z7", "r4", nil}, {"GET", "/z7x", "r0", nil}, {"GET", "/a/../a/%62", "r3", nil},
		{"GET", "/h", "r9", nil}, {"GET", "/h?q=a+b", "r5", nil}, {"GET", "/h?q=a%20b", "r5", nil}, {"GET", "/h?q=c&q=a+b", "r9", nil}, {"PUT", "/h?q=a+b", "r8", []http1.Field{{Name: "a", Value: "1"}}},
		{"GET", "/h?q=a+b", "r6", []http1.Field{{Name: "a", Value: "1"}}}, {"GET", "/h", "r7", []http1.Field{{Name: "b", Value: "2"}, {Name: "a", Value: "1"}}},
		{"GET", "/age", "z0", nil}, {"GET", "/name", "w0", nil}, {"OPTIONS", "*", "r0", nil},
	} {
		if got := found(r.Match(read(t, c.method, "cart", c.target, c.fields...), "web", 80)); got != c.want {
			t.Errorf("%v: %s", c, got)
		}
	}
	if len(r.Problems) > 0 {
		t.Error(r.Problems)
	}
}

// A route's hostnames mean nothing, the header Host does.
func TestHosts(t *testing.T) {
	host, hostnames := one("host", &mesh.RouteMatch{Headers: []*mesh.ValueMatch{header("host", "x.example")}}), one("any", &mesh.RouteMatch{})
	hostnames.Hostnames = []string{"z.example"}
	r := route.Compile([]*mesh.Route{hostnames, host})
	for asked, want := range map[string]string{"x.example": "host0", "y.example": "any0", "z.example": "any0"} {
		if got := found(r.Match(read(t, "GET", asked, "/"), "", 80)); got != want {
			t.Errorf("%s: %s, want %s", asked, got, want)
		}
	}
}

// Whose routes there are: consumers' for their own clients, ports', gRPC's before HTTP's.
func TestWhichRoutesApply(t *testing.T) {
	producer, consumer, port, call := one("producer", prefix("/")), one("consumer", prefix("/c")), one("port", prefix("/")), one("grpc", grpc("a.B", "C"), grpc("a.B", ""), grpc("", "D"))
	consumer.Consumer, consumer.Namespace = true, "web"
	port.Port = 8080
	call.Kind, call.Port = mesh.Route_GRPC, 9090
	r := route.Compile([]*mesh.Route{producer, consumer, port, call})
	for _, c := range []struct {
		namespace string
		port      uint16
		path      string
		want      string
	}{
		{"shop", 80, "/", "producer0"}, {"web", 80, "/c", "consumer0"}, {"web", 80, "/", "none"}, {"shop", 9090, "/a.B/C", "grpc0"}, {"shop", 9090, "/a.B/X", "grpc1"},
		{"shop", 9090, "/x/D", "grpc2"}, {"shop", 9090, "/", "none"}, {"", 80, "/", "producer0"},
	} {
		if got := found(r.Match(read(t, "POST", "a", c.path, http1.Field{Name: "content-type", Value: "application/grpc"}), c.namespace, c.port)); got != c.want {
			t.Errorf("%v: %s", c, got)
		}
	}
	// Routes for gRPC are for nothing else.
	for _, fields := range [][]http1.Field{nil, {{Name: "content-type", Value: "application/json"}}} {
		if got := found(r.Match(read(t, "POST", "a", "/a.B/C", fields...), "shop", 9090)); got != "none" {
			t.Errorf("%v: %s", fields, got)
		}
	}
	onlyPort := route.Compile([]*mesh.Route{port})
	if got := found(onlyPort.Match(read(t, "GET", "a", "/"), "", 80)); got != "the service" {
		t.Error(got)
	}
}

// What cannot be read is answered with 500 for all that it may match, and reported.
func TestWhatCannotBeRead(t *testing.T) {
	badHeader := prefix("/h")
	badHeader.Headers = []*mesh.ValueMatch{{Name: "a", Match: &mesh.ValueMatch_Regex{Regex: "("}}}
	for name, c := range map[string]struct {
		match *mesh.RouteMatch
		path  string
	}{
		"regex": {regex("("), "/"}, "long regex": {regex(strings.Repeat("a", 5000)), "/"}, "nothing": {&mesh.RouteMatch{Path: &mesh.PathMatch{}}, "/"}, "path": {exact("/a;b"), "/x"}, "header": {badHeader, "/h"},
	} {
		r := route.Compile([]*mesh.Route{one("r", c.match)})
		got := found(r.Match(read(t, "GET", "a", c.path, http1.Field{Name: "a", Value: "x"}), "", 80))
		if got != "invalid" || len(r.Problems) == 0 || !strings.Contains(r.Problems[0].Error(), "shop/r: rules[0].matches[0].") {
			t.Errorf("%s: %s, %v", name, got, r.Problems)
		}
	}
	withRule := func(change func(*mesh.RouteRule)) *mesh.Route {
		r := one("r", prefix("/"))
		change(r.Rules[0])
		return r
	}
	for name, change := range map[string]func(*mesh.RouteRule){
		"invalid": func(r *mesh.RouteRule) { r.Invalid = "no" },
		"filter":  func(r *mesh.RouteRule) { r.Filters = []*mesh.RouteFilter{{}} },
		"session": func(r *mesh.RouteRule) { r.SessionPersistence = &mesh.SessionPersistence{} },
	} {
		if got := found(route.Compile([]*mesh.Route{withRule(change)}).Match(read(t, "GET", "a", "/"), "", 80)); got != "invalid" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// What a newer controller says may narrow the rest: a route that has it answers with 500 for all that it may match.
func TestWhatANewerVersionSays(t *testing.T) {
	newer := func(m proto.Message) { m.ProtoReflect().SetUnknown(protoreflect.RawFields{0xb8, 0x3e, 1}) } // field 999 is 1
	for name, mark := range map[string]func(*mesh.Route){
		"the route":   func(r *mesh.Route) { newer(r) },
		"a rule":      func(r *mesh.Route) { newer(r.Rules[0]) },
		"a match":     func(r *mesh.Route) { newer(r.Rules[0].Matches[0]) },
		"a path":      func(r *mesh.Route) { newer(r.Rules[0].Matches[0].Path) },
		"a header":    func(r *mesh.Route) { newer(r.Rules[0].Matches[0].Headers[0]) },
		"a parameter": func(r *mesh.Route) { newer(r.Rules[0].Matches[0].QueryParams[0]) },
		"a backend":   func(r *mesh.Route) { newer(r.Rules[0].Backends[0]) },
		"retries":     func(r *mesh.Route) { newer(r.Rules[0].Retry) },
		"a filter":    func(r *mesh.Route) { newer(r.Rules[0].Filters[0].GetRequestHeaders()) },
	} {
		match := exact("/a")
		match.Headers, match.QueryParams = []*mesh.ValueMatch{header("x-tenant", "one")}, []*mesh.ValueMatch{header("q", "one")}
		in := one("r", match)
		in.Rules[0].Backends = []*mesh.RouteBackend{{Service: "shop/r", Port: 80, Weight: 1}}
		in.Rules[0].Retry = &mesh.RouteRetry{}
		in.Rules[0].Filters = []*mesh.RouteFilter{{Filter: &mesh.RouteFilter_RequestHeaders{RequestHeaders: &mesh.HeaderModifier{Remove: []string{"x"}}}}}
		ask := func(path, value string) *request.Request {
			return read(t, "GET", "a", path, http1.Field{Name: "x-tenant", Value: value})
		}
		if got := found(route.Compile([]*mesh.Route{in}).Match(ask("/a?q=one", "one"), "", 80)); got == "invalid" {
			t.Fatalf("without it: %s", got)
		}
		mark(in)
		r := route.Compile([]*mesh.Route{in, one("all", prefix("/"))})
		if got := found(r.Match(ask("/a?q=one", "one"), "", 80)); got != "invalid" || len(r.Problems) == 0 {
			t.Errorf("%s: %s, %v", name, got, r.Problems)
		}
		// What the field would have made of the value, nobody knows.
		for of, other := range map[string]*request.Request{"a path": ask("/b?q=one", "one"), "a header": ask("/a?q=one", "two"), "a parameter": ask("/a?q=two", "one")} {
			if got := found(r.Match(other, "", 80)); (got == "invalid") != (of == name) {
				t.Errorf("%s, of another value of %s: %s", name, of, got)
			}
		}
	}
	in := one("r", grpc("Cart", "Get"))
	in.Kind = mesh.Route_GRPC
	newer(in.Rules[0].Matches[0].Grpc)
	q := read(t, "POST", "a", "/Cart/Put", http1.Field{Name: "content-type", Value: "application/grpc"})
	if got := found(route.Compile([]*mesh.Route{in}).Match(q, "", 80)); got != "invalid" {
		t.Errorf("a method of gRPC: %s", got)
	}
}

func TestWeights(t *testing.T) {
	in := one("r", prefix("/"))
	for i, weight := range []uint32{0, 3, 0, 7} {
		in.Rules[0].Backends = append(in.Rules[0].Backends, &mesh.RouteBackend{Service: fmt.Sprint(i), Port: 80, Weight: weight})
	}
	rule := route.Compile([]*mesh.Route{in}).Match(read(t, "GET", "a", "/"), "", 80).Rule
	counts := map[string]int{}
	for n := range uint64(10) {
		counts[rule.Pick(func(all uint64) uint64 {
			if all != 10 {
				t.Errorf("of %d", all)
			}
			return n
		}).Service]++
	}
	if counts["1"] != 3 || counts["3"] != 7 {
		t.Error(counts)
	}
	none := route.Compile([]*mesh.Route{one("r", prefix("/"))}).Match(read(t, "GET", "a", "/"), "", 80).Rule
	if none.Pick(func(uint64) uint64 { return 0 }) != nil {
		t.Error("a backend out of none")
	}
}

// Match finds what looking through all matches one after the other would find.
func TestMatchEqualsTheReference(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"/", "/a", "/b", "/a/", "/a/b", "/a/b/c", "/b/a"}
	for range 300 {
		var routes []*mesh.Route
		for i := range 1 + random.IntN(6) {
			m := []func(string) *mesh.RouteMatch{exact, prefix}[random.IntN(2)]
			in := one(fmt.Sprint("r", i, "-"), func() (all []*mesh.RouteMatch) {
				for range 1 + random.IntN(4) {
					one := m(pieces[random.IntN(len(pieces))])
					if random.IntN(3) == 0 {
						one.Method = "PUT"
					}
					all = append(all, one)
				}
				return all
			}()...)
			in.Created = int64(random.IntN(3))
			routes = append(routes, in)
		}
		r := route.Compile(routes)
		for _, path := range pieces {
			for _, method := range []string{"GET", "PUT"} {
				q := read(t, method, "cart", path)
				if got, want := found(r.Match(q, "", 80)), reference(routes, q); got != want {
					t.Fatalf("%s %s: %s, want %s of %v", method, path, got, want, routes)
				}
			}
		}
	}
}

// reference compares all matches by the words of the specification.
func reference(routes []*mesh.Route, q *request.Request) string {
	best, name := []any(nil), "none"
	for _, r := range routes {
		for i, rule := range r.Rules {
			m := rule.Matches[0]
			e, p := m.Path.GetExact(), strings.TrimSuffix(m.Path.GetPrefix(), "/")
			isExact := e != ""
			if isExact && e != q.Path || !isExact && q.Path != p && !strings.HasPrefix(q.Path, p+"/") || m.Method != "" && m.Method != q.Method {
				continue
			}
			length := len(p)
			if isExact {
				length = 1000
			}
			key := []any{-length, -len(m.Method), int(r.Created), r.Name, i}
			if best == nil || less(key, best) {
				best, name = key, rule.Name
			}
		}
	}
	return name
}

func less(a, b []any) bool {
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		if s, ok := a[i].(string); ok {
			return s < b[i].(string)
		}
		return a[i].(int) < b[i].(int)
	}
	return false
}

func thousand() []*mesh.Route {
	var routes []*mesh.Route
	for i := range 1000 {
		routes = append(routes, one(fmt.Sprintf("r%04d-", i), exact(fmt.Sprintf("/exact/%d", i)), prefix(fmt.Sprintf("/prefix/%d", i))))
	}
	return routes
}

func TestMatchAllocatesNothing(t *testing.T) {
	r, q := route.Compile(thousand()), read(t, "GET", "cart", "/prefix/999/a/b")
	if n := testing.AllocsPerRun(100, func() {
		if r.Match(q, "web", 80).Rule == nil {
			t.Error("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMatch1000(b *testing.B) {
	r, q := route.Compile(thousand()), read(b, "GET", "cart", "/prefix/999/a/b")
	b.ReportAllocs()
	for b.Loop() {
		r.Match(q, "web", 80)
	}
}
