package route_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/policy"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// paths makes paths that are near to each other, in all spellings.
type paths struct{ *rand.Rand }

func (p paths) pick(of ...string) string { return of[p.IntN(len(of))] }

// path for a route or a policy: the beginning of what is asked for.
func (p paths) path() string {
	out := ""
	for range p.IntN(4) {
		out += "/" + p.pick("a", "ab", "%61", "a:b", "a%3Ab", "%C3%A9", "{x}", ".a", "%41")
	}
	return out + p.pick("", "", "/")
}

// target that a client asks for.
func (p paths) target() string {
	out := p.path()
	for range p.IntN(3) {
		out = p.pick("/.", "//", "/x/..", "", "/%2e", "/a") + out + p.pick("", "/", "/.", "/..", "/b", "?q=/a", "%2F", ";a", "/%61:b")
	}
	if !strings.HasPrefix(out, "/") {
		out = "/" + out
	}
	return out
}

// refuses tells whether a DENY of paths, written as in an AuthorizationPolicy, denies.
func refuses(q *request.Request, value string) bool {
	pattern := &mesh.StringPattern{Match: &mesh.StringPattern_Exact{Exact: value}}
	switch {
	case strings.Contains(value, "{**}"):
		pattern.Match = &mesh.StringPattern_Template{Template: value}
	case strings.HasSuffix(value, "*"):
		pattern.Match = &mesh.StringPattern_Prefix{Prefix: strings.TrimSuffix(value, "*")}
	}
	p, _ := policy.Parse(&mesh.RequestPolicy{Namespace: "shop", Name: "deny", Action: mesh.RequestPolicy_DENY, Rules: []*mesh.RequestRule{
		{To: []*mesh.RequestOperation{{Paths: []*mesh.StringPattern{pattern}}}},
	}})
	s := policy.Subject{Request: q, Client: netip.MustParseAddr("10.0.0.1"), Endpoint: netip.MustParseAddrPort("10.0.0.2:80")}
	return !policy.Decide(&s, []*policy.Policy{p}).Allowed
}

// Whatever the routes and however a request is spelt: what a route takes by a path, or by
// how it begins, a DENY of that path, or of how it begins, denies. So no spelling takes a
// request where a policy does not see it go.
func TestPoliciesDenyWhatRoutesTake(t *testing.T) {
	random := paths{rand.New(rand.NewPCG(7, 8))}
	taken := map[string]int{}
	for range 5000 {
		written := map[string]string{} // by the names of rules
		r := &mesh.Route{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "r"}
		for i := range 1 + random.IntN(5) {
			m, value := &mesh.RouteMatch{}, random.path()
			if value == "" || random.IntN(8) == 0 {
				value = "/"
			}
			kind := "prefix"
			if random.IntN(2) == 0 {
				m, kind = exact(value), "exact"
			} else {
				m = prefix(value)
			}
			name := fmt.Sprint(kind, i)
			written[name] = value
			r.Rules = append(r.Rules, &mesh.RouteRule{Name: name, Matches: []*mesh.RouteMatch{m}})
		}
		router := route.Compile([]*mesh.Route{r})
		for range 5 {
			method, target := "GET", random.target()
			if random.IntN(50) == 0 {
				method, target = "OPTIONS", "*"
			}
			q, err := request.Read(method, "cart", target, nil)
			if err != nil {
				taken["refused"]++
				continue
			}
			m := router.Match(&q, "", 80)
			if m.Rule == nil {
				taken["none"]++
				continue
			}
			value, isPrefix := written[m.Rule.Name], strings.HasPrefix(m.Rule.Name, "prefix")
			denials := []string{value}
			if isPrefix {
				bare := strings.TrimSuffix(value, "/")
				denials = []string{bare + "*", bare + "/{**}"}
				if bare == "" {
					denials = []string{"/*", "/{**}"}
				}
			}
			for _, d := range denials {
				covered := refuses(&q, d)
				// A template has segments: what is asked for may be the one above them.
				if isPrefix && strings.HasSuffix(d, "/{**}") {
					covered = covered || refuses(&q, strings.TrimSuffix(d, "/{**}"))
				}
				if !covered {
					t.Fatalf("%s of %q is taken by %s %q, and not denied by %q", q.Path, target, m.Rule.Name, value, d)
				}
			}
			taken[strings.TrimRight(m.Rule.Name, "0123456789")]++
			if target == "*" {
				taken["*"]++
			}
		}
	}
	for _, kind := range []string{"refused", "none", "exact", "prefix", "*"} {
		if taken[kind] < 100 {
			t.Errorf("%v: too few of one kind to say anything", taken)
		}
	}
}

// Of whatever routes there are, none that another namespace than the Service's has attached
// takes a request of any other client than its own; and those of its own namespace take a
// client's requests before all others.
func TestRoutesOfOthersTakeNothing(t *testing.T) {
	random := paths{rand.New(rand.NewPCG(9, 10))}
	taken := map[string]int{}
	for range 3000 {
		var routes []*mesh.Route
		own := map[string]bool{} // namespaces that have attached something to the port
		for i := range 1 + random.IntN(5) {
			r := &mesh.Route{Kind: []mesh.Route_Kind{mesh.Route_HTTP, mesh.Route_GRPC}[random.IntN(2)], Namespace: random.pick("shop", "web", "mobile"), Name: fmt.Sprint("r", i), Port: uint32(80 + random.IntN(2)*10)}
			r.Consumer = r.Namespace != "shop"
			r.Rules = []*mesh.RouteRule{{Name: r.Namespace, Matches: []*mesh.RouteMatch{{}}}}
			if r.Kind == mesh.Route_HTTP {
				r.Rules[0].Matches = []*mesh.RouteMatch{prefix(random.pick("/", "/a", "/a/b"))}
			}
			routes = append(routes, r)
			own[r.Namespace] = own[r.Namespace] || r.Consumer && r.Port == 80
		}
		router := route.Compile(routes)
		for _, client := range []string{"shop", "web", "mobile", "", "other"} {
			q := read(t, "POST", "cart", random.pick("/", "/a", "/a/b/c"), http1.Field{Name: "content-type", Value: "application/grpc"})
			m := router.Match(q, client, 80)
			switch {
			case m.Rule == nil:
				taken["none"]++
			case m.Rule.Name != "shop" && m.Rule.Name != client:
				t.Fatalf("a client of %q is taken by %v of %v", client, m.Rule.Route, routes)
			case m.Rule.Name == "shop" && own[client]:
				t.Fatalf("a client of %q, which has routes of its own, is taken by %v of %v", client, m.Rule.Route, routes)
			default:
				taken[m.Rule.Name]++
			}
		}
	}
	for _, kind := range []string{"none", "shop", "web", "mobile"} {
		if taken[kind] < 100 {
			t.Errorf("%v: too few of one kind to say anything", taken)
		}
	}
}
