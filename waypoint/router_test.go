package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

// routed is a waypoint before a service, with another one to route to.
type routed struct {
	*waypointtest.Mesh
	service, canary *workload.Service
	stable          *waypointtest.Pod
	http            *http.Client
}

// named answers with its own name and what it was asked for.
func named(name string) func(net.Conn) {
	return func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			q, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			text := name + " " + q.Host + q.RequestURI + " " + q.Header.Get("X-Added")
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		}
	}
}

func startRouted(t *testing.T) *routed {
	m := waypointtest.New(t)
	client, stable, canary := m.Pod("web", "10.9.0.2"), m.Pod("stable", "10.9.0.3"), m.Pod("canary", "10.9.0.4")
	r := &routed{Mesh: m, stable: stable, service: m.Service("cart", "10.9.100.1", api.AppProtocol_HTTP11, stable), canary: m.Service("canary", "10.9.100.2", api.AppProtocol_HTTP11, canary)}
	stable.Serve(stable.ID, named("stable"))
	canary.Serve(canary.ID, named("canary"))
	judges := newPolicies(nil, newTokens("shop", nil, m.Logger), nil, m.Logger)
	engine, err := exchange.New(exchange.Config{
		Snapshot: m.Store.Snapshot, Self: m.Self, Policies: judges, Router: newRouter(m.Logger), Upstream: m.Upstream,
		Telemetry: exchange.NewTelemetry(m.Logger, m.Metrics), Logger: m.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Run("requests", engine.Run)
	m.Start(func(c *server.Config) { c.Policies, c.HTTP = judges, engine })
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return client.Open("10.9.100.1:80") }}
	t.Cleanup(transport.CloseIdleConnections)
	r.http = &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r
}

func (r *routed) get(t *testing.T, url string) (int, string, http.Header) {
	t.Helper()
	response, err := r.http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(all), response.Header
}

func (r *routed) backend(s *workload.Service, weight uint32) *mesh.RouteBackend {
	return &mesh.RouteBackend{Service: s.Key, Port: 80, Weight: weight}
}

func (r *routed) bind(rules ...*mesh.RouteRule) {
	r.Bind(r.service, func(b *mesh.Binding) {
		b.Routes = []*mesh.Route{{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "cart", Rules: rules}}
	})
}

func prefixed(path string) []*mesh.RouteMatch {
	return []*mesh.RouteMatch{{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Prefix{Prefix: path}}}}
}

func TestRoutesFromTheConfigurationToTheEndpoint(t *testing.T) {
	r := startRouted(t)
	r.Bind(r.service)
	if status, text, _ := r.get(t, "http://cart/x"); status != 200 || text != "stable cart/x " {
		t.Errorf("without routes: %d, %q", status, text)
	}
	replace := &mesh.PathModifier{Path: &mesh.PathModifier_Prefix{Prefix: "/new"}}
	r.bind(
		&mesh.RouteRule{Matches: prefixed("/canary"), Backends: []*mesh.RouteBackend{r.backend(r.canary, 1)}, Filters: []*mesh.RouteFilter{
			{Filter: &mesh.RouteFilter_Rewrite{Rewrite: &mesh.URLRewrite{Hostname: "canary.shop", Path: replace}}},
			{Filter: &mesh.RouteFilter_RequestHeaders{RequestHeaders: &mesh.HeaderModifier{Set: []*mesh.HeaderModifier_Header{{Name: "x-added", Value: "yes"}}}}},
			{Filter: &mesh.RouteFilter_ResponseHeaders{ResponseHeaders: &mesh.HeaderModifier{Add: []*mesh.HeaderModifier_Header{{Name: "x-route", Value: "canary"}}}}},
		}},
		&mesh.RouteRule{Matches: prefixed("/moved"), Filters: []*mesh.RouteFilter{{Filter: &mesh.RouteFilter_Redirect{Redirect: &mesh.RequestRedirect{Hostname: "other", StatusCode: 301}}}}},
		&mesh.RouteRule{Matches: prefixed("/invalid"), Backends: []*mesh.RouteBackend{{Weight: 1, Invalid: "not permitted"}}},
		&mesh.RouteRule{Matches: prefixed("/none")},
		&mesh.RouteRule{Matches: prefixed("/unknown"), Filters: []*mesh.RouteFilter{{}}, Backends: []*mesh.RouteBackend{r.backend(r.service, 1)}},
		&mesh.RouteRule{Matches: prefixed("/said"), Invalid: "an expression", Backends: []*mesh.RouteBackend{r.backend(r.service, 1)}},
	)
	if status, text, header := r.get(t, "http://cart/canary/a?b=c"); status != 200 || text != "canary canary.shop/new/a?b=c yes" || header.Get("X-Route") != "canary" {
		t.Errorf("rewritten: %d, %q, %v", status, text, header)
	}
	if status, _, header := r.get(t, "http://cart/moved/a"); status != 301 || header.Get("Location") != "http://other/moved/a" {
		t.Errorf("redirected: %d, %v", status, header)
	}
	for path, want := range map[string]int{"/x": 404, "/invalid": 500, "/none": 500, "/unknown": 500, "/said": 500} {
		if status, text, _ := r.get(t, "http://cart"+path); status != want || text != "" {
			t.Errorf("%s: %d, %q, want %d", path, status, text, want)
		}
	}
}

// Shares are those of the weights, and shift with them in live connections.
func TestWeights(t *testing.T) {
	r := startRouted(t)
	for _, share := range []uint32{10, 50, 0, 100} {
		r.bind(&mesh.RouteRule{Backends: []*mesh.RouteBackend{r.backend(r.service, 100-share), r.backend(r.canary, share)}})
		const requests = 500
		canary := 0
		for range requests {
			status, text, _ := r.get(t, "http://cart/")
			if status != 200 {
				t.Fatalf("answered %d", status)
			}
			if text[:6] == "canary" {
				canary++
			}
		}
		// Five standard deviations of a share of a half.
		if want := requests * int(share) / 100; canary < want-56 || canary > want+56 || share%100 == 0 && canary != want {
			t.Errorf("%d of %d at %d%%", canary, requests, share)
		}
	}
}

// Policy decides before the route does, and takes back what it allowed.
func TestPoliciesAndRoutes(t *testing.T) {
	r := startRouted(t)
	r.Bind(r.service, func(b *mesh.Binding) { b.Policies = []string{"shop/admin"} })
	if status, _, _ := r.get(t, "http://cart/"); status != 503 {
		t.Errorf("a policy that has not come: %d", status)
	}
	r.Publish(&mesh.RequestPolicy{Namespace: "shop", Name: "admin", Action: mesh.RequestPolicy_DENY, Rules: []*mesh.RequestRule{{
		To: []*mesh.RequestOperation{{Paths: []*mesh.StringPattern{{Match: &mesh.StringPattern_Prefix{Prefix: "/admin"}}}}},
	}}})
	for path, want := range map[string]int{"/": 200, "/admin": 403, "/admin/x": 403, "/%61dmin": 403, "/x/../admin": 403, "//admin": 403, "/x%2F..%2Fadmin": 400, "/admin;x": 400} {
		if status, _, _ := r.get(t, "http://cart"+path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
}

// A session stays at its endpoint for as long as that is there, whatever the client did
// meanwhile; then it goes on at another one, and the client is told.
func TestSessionsStayAtTheirEndpoint(t *testing.T) {
	r := startRouted(t)
	third := r.Pod("third", "10.9.0.5")
	third.Serve(third.ID, named("third"))
	both := r.Service("both", "10.9.100.3", api.AppProtocol_HTTP11, r.stable, third)
	bind := func(in *mesh.SessionPersistence, backends ...*mesh.RouteBackend) {
		r.Bind(r.service, func(b *mesh.Binding) {
			b.Routes = []*mesh.Route{{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "r", Rules: []*mesh.RouteRule{{
				SessionPersistence: in, Backends: backends,
				Matches: []*mesh.RouteMatch{{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Prefix{Prefix: "/shop"}}}},
			}}}}
		})
	}
	ask := func(name, value string) (who string, header http.Header) {
		t.Helper()
		q, err := http.NewRequest("GET", "http://cart/shop/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		if value != "" {
			q.Header.Set(name, value)
		}
		response, err := r.http.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		all, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatal(response.StatusCode, err)
		}
		who, _, _ = strings.Cut(string(all), " ")
		return who, response.Header
	}
	bind(&mesh.SessionPersistence{Name: "s"}, r.backend(both, 1), r.backend(r.canary, 1))
	with := map[string]string{} // endpoint -> cookie
	for range 200 {
		who, header := ask("", "")
		cookie := header.Get("Set-Cookie")
		if !strings.HasSuffix(cookie, "; Path=/; HttpOnly; SameSite=Lax") {
			t.Fatalf("%s: %q", who, cookie)
		}
		with[who], _, _ = strings.Cut(cookie, ";")
	}
	if len(with) != 3 {
		t.Fatalf("new sessions came to %v", with)
	}
	for who, cookie := range with {
		for range 20 {
			if got, header := ask("Cookie", cookie); got != who || header.Get("Set-Cookie") != "" {
				t.Fatalf("a session of %s came to %s, %q", who, got, header.Get("Set-Cookie"))
			}
		}
	}
	// The endpoint is gone: at another one from now on.
	third.Withdraw()
	moved, header := ask("Cookie", with["third"])
	if again, _, _ := strings.Cut(header.Get("Set-Cookie"), ";"); moved == "third" || again != with[moved] {
		t.Errorf("moved to %s with %q, want the session of %v", moved, again, with)
	}
	// The backend gets no more requests.
	bind(&mesh.SessionPersistence{Name: "s"}, r.backend(both, 1), r.backend(r.canary, 0))
	if got, header := ask("Cookie", with["canary"]); got != "stable" || header.Get("Set-Cookie") == "" {
		t.Errorf("a session of a backend without weight came to %s", got)
	}
	// By a field.
	bind(&mesh.SessionPersistence{Name: "x-session", Type: mesh.SessionPersistence_HEADER}, r.backend(both, 1), r.backend(r.canary, 1))
	who, header := ask("", "")
	token := header.Get("X-Session")
	for range 20 {
		if got, header := ask("X-Session", token); got != who || header.Get("X-Session") != "" {
			t.Fatalf("a session of %s came to %s, %q", who, got, header.Get("X-Session"))
		}
	}
}
