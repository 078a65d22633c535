package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/authorizer"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/jwks"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

// guarded is a waypoint that verifies tokens, before an application that says what it got.
type guarded struct {
	*waypointtest.Mesh
	client, app *waypointtest.Pod
	service     *workload.Service
	keys        *jwks.Store
	roots       *x509.CertPool
	http        *http.Client
	// reached counts the requests that came to the application.
	reached atomic.Int64
}

const guardedVIP = "10.9.100.1:80"

func startGuarded(t *testing.T, app api.AppProtocol) *guarded {
	m := waypointtest.New(t)
	g := &guarded{Mesh: m, client: m.Pod("web", "10.9.0.2"), app: m.Pod("cart", "10.9.0.3"), roots: x509.NewCertPool()}
	g.service = m.Service("cart", "10.9.100.1", app, g.app)
	g.app.Serve(g.app.ID, g.answer)
	g.keys = jwks.New(jwks.Config{
		Mesh: issuers{snapshot: m.Store.Snapshot, self: m.Self, upstream: m.Upstream}, Logger: m.Logger, Registerer: m.Metrics,
		TLS: &tls.Config{RootCAs: g.roots, ServerName: "example.com"}, // httptest's certificate
	})
	m.Run("keys", g.keys.Run)
	tokens := newTokens("shop", g.keys, m.Logger)
	providers := authorizer.New(authorizer.Config{Dial: issuers{snapshot: m.Store.Snapshot, self: m.Self, upstream: m.Upstream}.DialProvider, Registerer: m.Metrics})
	t.Cleanup(providers.Close)
	judges := newPolicies(func() spiffe.ID { return m.Self().Identity }, tokens, providers, m.Logger)
	engine, err := exchange.New(exchange.Config{
		Snapshot: m.Store.Snapshot, Self: m.Self, Policies: judges, Router: newRouter(m.Logger), Upstream: m.Upstream,
		Telemetry: exchange.NewTelemetry(m.Logger, m.Metrics), Logger: m.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Run("requests", engine.Run)
	m.Start(func(c *server.Config) { c.Policies, c.HTTP = judges, engine })
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return g.client.Open(guardedVIP) }}
	t.Cleanup(transport.CloseIdleConnections)
	g.http = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	return g
}

// answer says what the application got, one line each.
func (g *guarded) answer(c net.Conn) {
	l := &oneConn{conn: make(chan net.Conn, 1), done: make(chan struct{}), addr: c.LocalAddr()}
	l.conn <- &closing{Conn: c, done: l.done}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	(&http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		g.reached.Add(1)
		hash := sha256.New()
		n, _ := io.Copy(hash, q.Body)
		fmt.Fprintln(w, q.RequestURI)
		if n > 0 {
			fmt.Fprintf(w, "body of %d: %x\n", n, hash.Sum(nil))
		}
		for name, values := range q.Header {
			for _, v := range values {
				fmt.Fprintf(w, "%s: %s\n", strings.ToLower(name), v)
			}
		}
		for name, values := range q.Trailer {
			fmt.Fprintf(w, "trailer %s: %s\n", strings.ToLower(name), values)
		}
		if q.URL.Path == "/long" {
			http.NewResponseController(w).Flush()
			<-q.Context().Done()
		}
	})}).Serve(l)
}

type oneConn struct {
	conn chan net.Conn
	done chan struct{}
	addr net.Addr
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.addr }

type closing struct {
	net.Conn
	done chan struct{}
	once atomic.Bool
}

func (c *closing) Close() error {
	if c.once.CompareAndSwap(false, true) {
		close(c.done)
	}
	return c.Conn.Close()
}

// authentications bind the Service to these, which are published.
func (g *guarded) authentications(all ...*mesh.RequestAuthentication) {
	for _, a := range all {
		g.Publish(a)
	}
	g.Bind(g.service, func(b *mesh.Binding) {
		for _, a := range all {
			b.Authentications = append(b.Authentications, a.Namespace+"/"+a.Name)
		}
	})
}

func inline(t *testing.T, i *jwttest.Issuer, change ...func(*mesh.TokenRule)) *mesh.TokenRule {
	r := &mesh.TokenRule{Issuer: i.Name, Keys: &mesh.TokenRule_Jwks{Jwks: jwttest.Keys(t, i)}}
	for _, c := range change {
		c(r)
	}
	return r
}

func (g *guarded) do(t *testing.T, client *http.Client, path string, headers ...string) (int, string, http.Header) {
	t.Helper()
	q, err := http.NewRequest("GET", "http://cart"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		q.Header[headers[i]] = append(q.Header[headers[i]], headers[i+1])
	}
	response, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body), response.Header
}

// What tokens a request may bear, and what of it goes on.
func TestTokens(t *testing.T) {
	me, forger := jwttest.New(t, "me", "1"), jwttest.New(t, "me", "1")
	for _, app := range []api.AppProtocol{api.AppProtocol_HTTP11, api.AppProtocol_HTTP2} {
		t.Run(app.String(), func(t *testing.T) {
			g := startGuarded(t, app)
			g.authentications(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, me, func(r *mesh.TokenRule) {
				r.Audiences = []string{"cart"}
				r.ClaimHeaders = []*mesh.TokenRule_ClaimHeader{{Header: "x-sub", Claim: []string{"sub"}}}
			})}})
			client := g.http
			if app == api.AppProtocol_HTTP2 {
				transport := &http2.Transport{AllowHTTP: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return g.client.Open(guardedVIP) }}
				t.Cleanup(transport.CloseIdleConnections)
				client = &http.Client{Transport: transport, Timeout: 20 * time.Second}
			}
			good := me.Token(map[string]any{"aud": []string{"x", "cart"}})
			bearer := func(claims map[string]any) []string {
				return []string{"Authorization", "Bearer " + me.Token(claims)}
			}
			for name, c := range map[string]struct {
				path    string
				headers []string
				status  int
				has     string
				lacks   []string
			}{
				"none":               {"/", []string{"X-Sub", "root", "X_sub", "root"}, 200, "/\n", []string{"root"}},
				"of another scheme":  {"/", []string{"Authorization", "Basic YTpi"}, 200, "authorization: Basic YTpi", nil},
				"good":               {"/", []string{"Authorization", "Bearer " + good, "X-Sub", "root"}, 200, "x-sub: you\n", []string{"root", "authorization", good}},
				"good, small letter": {"/", []string{"authorization", "bearer " + good}, 200, "x-sub: you\n", []string{good}},
				"good, in the query": {"/a?x=1&access_token=" + good + "&y=2", nil, 200, "/a?x=1&y=2\n", []string{good}},
				"for others":         {"/", bearer(map[string]any{"aud": "other"}), 401, "", nil},
				"for nobody":         {"/", bearer(nil), 401, "", nil},
				"expired":            {"/", bearer(map[string]any{"aud": "cart", "exp": time.Now().Add(-time.Hour).Unix()}), 401, "", nil},
				"not yet":            {"/", bearer(map[string]any{"aud": "cart", "nbf": time.Now().Add(time.Hour).Unix()}), 401, "", nil},
				"unknown issuer":     {"/", bearer(map[string]any{"aud": "cart", "iss": "you"}), 401, "", nil},
				"forged":             {"/", []string{"Authorization", "Bearer " + forger.Token(map[string]any{"aud": "cart"})}, 401, "", nil},
				"by a secret":        {"/", []string{"Authorization", "Bearer " + jwttest.Sign(t, jose.HS256, []byte(jwttest.Keys(t, me)), "1", `{"iss":"me","aud":"cart"}`)}, 401, "", nil},
				"unsigned":           {"/", []string{"Authorization", "Bearer eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + "."}, 401, "", nil},
				"unknown key":        {"/", []string{"Authorization", "Bearer " + jwttest.New(t, "me", "2").Token(map[string]any{"aud": "cart"})}, 401, "", nil},
				"garbage":            {"/", []string{"Authorization", "Bearer garbage"}, 401, "", nil},
				"empty":              {"/", []string{"Authorization", "Bearer "}, 401, "", nil},
				"huge":               {"/", []string{"Authorization", "Bearer " + good + strings.Repeat("A", 20<<10)}, 401, "", nil},
				"in two places":      {"/?access_token=" + good, []string{"Authorization", "Bearer " + good}, 400, "", nil},
				"twice":              {"/", []string{"Authorization", "Bearer " + good, "Authorization", "Bearer " + good}, 400, "", nil},
			} {
				before := g.reached.Load()
				status, body, header := g.do(t, client, c.path, c.headers...)
				if status != c.status || !strings.Contains(body, c.has) {
					t.Errorf("%s: %d %q, want %d and %q", name, status, body, c.status, c.has)
				}
				for _, text := range c.lacks {
					if strings.Contains(body, text) {
						t.Errorf("%s: the application got %q: %s", name, text, body)
					}
				}
				if got := g.reached.Load() - before; (got == 1) != (c.status == 200) {
					t.Errorf("%s: %d requests came to the application", name, got)
				}
				if c.status == 401 && !strings.HasPrefix(header.Get("WWW-Authenticate"), "Bearer ") {
					t.Errorf("%s: the client is not told how: %v", name, header)
				}
			}
		})
	}
}

// Fields for claims are not taken from what comes after a body either.
func TestTrailersForgeNoClaims(t *testing.T) {
	g := startGuarded(t, api.AppProtocol_HTTP11)
	g.authentications(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, jwttest.New(t, "me", "1"), func(r *mesh.TokenRule) {
		r.ClaimHeaders = []*mesh.TokenRule_ClaimHeader{{Header: "x-sub", Claim: []string{"sub"}}}
	})}})
	stream := g.client.Dial(guardedVIP)
	fmt.Fprint(stream, "POST / HTTP/1.1\r\nHost: cart\r\nTrailer: X-Sub, X-Other\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sub: root\r\nX-Other: fine\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(stream), nil)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 4096)
	n, _ := io.ReadFull(response.Body, body)
	if text := string(body[:n]); !strings.Contains(text, "fine") || strings.Contains(text, "root") {
		t.Error(text)
	}
}

func exactly(text string) []*mesh.StringPattern {
	return []*mesh.StringPattern{{Match: &mesh.StringPattern_Exact{Exact: text}}}
}

func presence() []*mesh.StringPattern {
	return []*mesh.StringPattern{{Match: &mesh.StringPattern_Present{Present: true}}}
}

// Policies see who a token is of, and nobody where there is none.
func TestPoliciesSeeTokens(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	admin, you := me.Token(map[string]any{"sub": "admin", "realm": map[string]any{"groups": []string{"a", "staff"}}}), me.Token(map[string]any{"scope": "read write"})
	allow := &mesh.RequestPolicy{Namespace: "shop", Name: "allow", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{From: []*mesh.RequestSource{{RequestPrincipals: exactly("me/admin")}}}}}
	demand := &mesh.RequestPolicy{Namespace: "shop", Name: "demand", Action: mesh.RequestPolicy_DENY, Rules: []*mesh.RequestRule{{From: []*mesh.RequestSource{{NotRequestPrincipals: presence()}}}}}
	staff := &mesh.RequestPolicy{Namespace: "shop", Name: "staff", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{When: []*mesh.RequestCondition{{Key: "request.auth.claims[realm][groups]", Values: exactly("staff")}}}}}
	writer := &mesh.RequestPolicy{Namespace: "shop", Name: "writer", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{When: []*mesh.RequestCondition{{Key: "request.auth.claims[scope]", Values: exactly("write")}}}}}
	expression := &mesh.RequestPolicy{Namespace: "shop", Name: "expression", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{Condition: "request.auth.claims.sub == 'admin' && request.path == '/'"}}}
	broken := &mesh.RequestPolicy{Namespace: "shop", Name: "broken", Action: mesh.RequestPolicy_DENY, Rules: []*mesh.RequestRule{{Condition: "request.auth.claims.sub =="}}}
	for name, c := range map[string]struct {
		policy *mesh.RequestPolicy
		// of no token, yours, the administrator's
		want [3]int
	}{
		"ALLOW by principal":   {allow, [3]int{403, 403, 200}},
		"DENY without":         {demand, [3]int{403, 200, 200}},
		"ALLOW by a claim":     {staff, [3]int{403, 403, 200}},
		"ALLOW by a scope":     {writer, [3]int{403, 200, 403}},
		"ALLOW by a condition": {expression, [3]int{403, 403, 200}},
		"DENY, not readable":   {broken, [3]int{403, 403, 403}},
		"no policy about them": {nil, [3]int{200, 200, 200}},
	} {
		for _, atPod := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, at the pod: %t", name, atPod), func(t *testing.T) {
				g := startGuarded(t, api.AppProtocol_HTTP11)
				a := &mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, me)}}
				g.authentications(a)
				if c.policy != nil {
					g.Publish(c.policy)
					if atPod {
						g.app.Policies("shop/" + c.policy.Name)
					} else {
						g.Bind(g.service, func(b *mesh.Binding) {
							b.Authentications, b.Policies = []string{"shop/tokens"}, []string{"shop/" + c.policy.Name}
						})
					}
				}
				for i, token := range []string{"", you, admin} {
					var headers []string
					if token != "" {
						headers = []string{"Authorization", "Bearer " + token}
					}
					if status, body, _ := g.do(t, g.http, "/", headers...); status != c.want[i] {
						t.Errorf("token %d: %d, want %d: %s", i, status, c.want[i], body)
					}
				}
			})
		}
	}
}

// Policies and routes see the fields that a waypoint sends, not those that a client forged.
func TestPoliciesSeeNoForgedClaims(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	g := startGuarded(t, api.AppProtocol_HTTP11)
	g.Publish(&mesh.RequestPolicy{Namespace: "shop", Name: "admins", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{When: []*mesh.RequestCondition{{Key: "request.headers[x-role]", Values: exactly("admin")}}}}})
	g.Publish(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, me, func(r *mesh.TokenRule) {
		r.ClaimHeaders = []*mesh.TokenRule_ClaimHeader{{Header: "x-role", Claim: []string{"role"}}}
	})}})
	g.Bind(g.service, func(b *mesh.Binding) {
		b.Authentications, b.Policies = []string{"shop/tokens"}, []string{"shop/admins"}
	})
	for name, c := range map[string]struct {
		headers []string
		want    int
	}{
		"forged":                     {[]string{"X-Role", "admin"}, 403},
		"forged, beside a token":     {[]string{"X-Role", "admin", "Authorization", "Bearer " + me.Token(map[string]any{"role": "user"})}, 403},
		"forged, beside one without": {[]string{"X-Role", "admin", "Authorization", "Bearer " + me.Token(nil)}, 403},
		"by its token":               {[]string{"Authorization", "Bearer " + me.Token(map[string]any{"role": "admin"})}, 200},
	} {
		if status, _, _ := g.do(t, g.http, "/", c.headers...); status != c.want {
			t.Errorf("%s: %d, want %d", name, status, c.want)
		}
	}
}

// What applies and has not come, or is not understood, lets nothing pass.
func TestAuthenticationsThatAreMissing(t *testing.T) {
	g := startGuarded(t, api.AppProtocol_HTTP11)
	g.Bind(g.service, func(b *mesh.Binding) { b.Authentications = []string{"shop/tokens"} })
	if status, _, _ := g.do(t, g.http, "/"); status != 503 {
		t.Errorf("not there: %d", status)
	}
	g.Publish(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Invalid: "so"})
	if status, _, _ := g.do(t, g.http, "/"); status != 401 {
		t.Errorf("not understood: %d", status)
	}
	g.Publish(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens"})
	if status, _, _ := g.do(t, g.http, "/"); status != 200 {
		t.Errorf("there, without rules: %d", status)
	}
	if got := g.reached.Load(); got != 1 {
		t.Errorf("%d requests came to the application, want 1", got)
	}
}

// Whoever leads requests to a pod of another namespace does not say who counts there.
func TestAnotherNamespacesIssuersDoNotCount(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	for name, c := range map[string]struct {
		namespace string
		meshWide  bool
		want      int
	}{
		"the pod's own": {"shop", false, 200},
		"another's":     {"other", false, 403},
		"the mesh's":    {"other", true, 200},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGuarded(t, api.AppProtocol_HTTP11)
			g.Publish(&mesh.RequestPolicy{Namespace: "shop", Name: "allow", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{From: []*mesh.RequestSource{{RequestPrincipals: exactly("me/you")}}}}})
			g.app.Policies("shop/allow")
			g.authentications(&mesh.RequestAuthentication{Namespace: c.namespace, Name: "tokens", MeshWide: c.meshWide, Rules: []*mesh.TokenRule{inline(t, me)}})
			if status, _, _ := g.do(t, g.http, "/", "Authorization", "Bearer "+me.Token(nil)); status != c.want {
				t.Errorf("%d, want %d", status, c.want)
			}
		})
	}
}

// A request that lives is cut when who it is of counts no more.
func TestTakingBackAnIssuerCutsRequests(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	g := startGuarded(t, api.AppProtocol_HTTP11)
	a := &mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, me)}}
	g.Publish(&mesh.RequestPolicy{Namespace: "shop", Name: "allow", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{From: []*mesh.RequestSource{{RequestPrincipals: exactly("me/you")}}}}})
	g.Publish(a)
	g.Bind(g.service, func(b *mesh.Binding) {
		b.Authentications, b.Policies = []string{"shop/tokens"}, []string{"shop/allow"}
	})
	open := func() (alive chan error) {
		q, _ := http.NewRequest("GET", "http://cart/long", nil)
		q.Header.Set("Authorization", "Bearer "+me.Token(nil))
		response, err := g.http.Do(q)
		if err != nil || response.StatusCode != 200 {
			t.Fatal(response, err)
		}
		alive = make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, response.Body)
			alive <- err
		}()
		t.Cleanup(func() { response.Body.Close() })
		return alive
	}
	alive := open()
	// One of another content, by which it still holds; then by another's keys.
	again := &mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, me), inline(t, jwttest.New(t, "you", "1"))}}
	g.Publish(again)
	select {
	case err := <-alive:
		t.Fatalf("cut although the token is still good: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	g.Publish(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, jwttest.New(t, "me", "1"))}})
	select {
	case err := <-alive:
		if err == nil {
			t.Error("it ends as if it were complete")
		}
	case <-time.After(5 * time.Second):
		t.Error("it lives on although nobody vouches for its token")
	}
}

// issuer serves keys at an address of its own.
func (g *guarded) issuer(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "10.9.0.40:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(answer)
	s.Listener.Close()
	s.Listener = l
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.StartTLS()
	t.Cleanup(s.Close)
	g.roots.AddCert(s.Certificate())
	return s.URL
}

func at(uri, name string) *mesh.RequestAuthentication {
	return &mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{{Issuer: name, Keys: &mesh.TokenRule_JwksUri{JwksUri: uri}}}}
}

// Keys that cannot be had refuse who bears a token, and nobody else.
func TestIssuersThatFail(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	g := startGuarded(t, api.AppProtocol_HTTP11)
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was reached") }))
	defer inside.Close()
	for name, uri := range map[string]string{
		"nobody there":    "https://10.9.0.50:1/",
		"no such name":    "https://nobody.invalid/",
		"this machine":    strings.Replace(inside.URL, "http", "https", 1),
		"in clear":        inside.URL,
		"link-local":      "https://169.254.169.254/latest",
		"down":            g.issuer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }),
		"late":            g.issuer(t, func(_ http.ResponseWriter, q *http.Request) { <-q.Context().Done() }),
		"huge":            g.issuer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat(" ", 1<<20)) }),
		"leads inside":    g.issuer(t, func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, inside.URL, http.StatusFound) }),
		"leads to itself": g.issuer(t, func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, "/", http.StatusTemporaryRedirect) }),
	} {
		g.authentications(at(uri, "me"))
		began := time.Now()
		if status, _, _ := g.do(t, g.http, "/", "Authorization", "Bearer "+me.Token(nil)); status != 401 {
			t.Errorf("%s: %d", name, status)
		}
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("%s: the client waited for %v", name, took)
		}
		if status, _, _ := g.do(t, g.http, "/"); status != 200 {
			t.Errorf("%s: without a token: %d", name, status)
		}
	}
}

// An issuer changes its keys, and tokens of the new one are good at once.
func TestIssuersChangeTheirKeys(t *testing.T) {
	old, next := jwttest.New(t, "me", "1"), jwttest.New(t, "me", "2")
	var keys atomic.Value
	keys.Store(jwttest.Keys(t, old))
	g := startGuarded(t, api.AppProtocol_HTTP11)
	var fetches atomic.Int64
	g.authentications(at(g.issuer(t, func(w http.ResponseWriter, _ *http.Request) {
		fetches.Add(1)
		io.WriteString(w, keys.Load().(string))
	}), "me"))
	get := func(i *jwttest.Issuer) int {
		status, _, _ := g.do(t, g.http, "/", "Authorization", "Bearer "+i.Token(nil))
		return status
	}
	if got := get(old); got != 200 {
		t.Errorf("the first: %d", got)
	}
	keys.Store(jwttest.Keys(t, next))
	for range 20 {
		if got := get(next); got != 401 {
			t.Errorf("of a key that is not known: %d", got)
		}
	}
	if got := fetches.Load(); got != 1 {
		t.Errorf("%d fetches for tokens that anybody can make up", got)
	}
	eventually(t, "the next key is found", func() bool { time.Sleep(500 * time.Millisecond); return get(next) == 200 })
	if got := get(old); got != 401 || fetches.Load() != 2 {
		t.Errorf("the old one, that is published no more: %d, after %d fetches", got, fetches.Load())
	}
}

// An issuer that is a Service is reached by a tunnel, or not at all.
func TestIssuersInTheMesh(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	text := jwttest.Keys(t, me)
	answer := func(c net.Conn) {
		defer c.Close()
		if q, err := http.ReadRequest(bufio.NewReader(c)); err == nil && q.URL.Path == "/keys" {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		}
	}
	g := startGuarded(t, api.AppProtocol_HTTP11)
	enrolled, plain := g.Pod("issuer", "10.9.0.41"), g.Pod("open", "10.9.0.42", waypointtest.Plain)
	enrolled.Serve(enrolled.ID, answer)
	listener, err := net.Listen("tcp", fmt.Sprintf("10.9.0.42:%d", waypointtest.AppPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			t.Error("keys are asked for in clear")
			answer(c)
		}
	}()
	g.Service("issuer", "10.9.100.3", api.AppProtocol_HTTP11, enrolled)
	g.Service("open", "10.9.100.4", api.AppProtocol_HTTP11, plain)
	for uri, want := range map[string]int{
		"http://issuer.shop.svc.cluster.local/keys": 200,
		"http://issuer.shop.svc/keys":               200,
		"http://issuer.shop.svc.cluster.local/else": 401,
		"http://open.shop.svc.cluster.local/keys":   401,
		"http://none.shop.svc.cluster.local/keys":   401,
	} {
		g.authentications(at(uri, "me"))
		if status, _, _ := g.do(t, g.http, "/", "Authorization", "Bearer "+me.Token(nil)); status != want {
			t.Errorf("%s: %d, want %d", uri, status, want)
		}
	}
	asked := enrolled.Asked()
	if len(asked) == 0 || asked[0].Peer.ServiceAccount != "way" {
		t.Errorf("not by the waypoint's identity: %+v", asked)
	}
}

// Keys are fetched again without a request that asks for them, and it is told as long as
// there are none.
func TestMissingKeysAreTold(t *testing.T) {
	g := startGuarded(t, api.AppProtocol_HTTP11)
	const uri = "https://127.0.0.1/keys" // which is refused, as good as an issuer that is down
	g.Publish(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{{Issuer: "me", Keys: &mesh.TokenRule_JwksUri{JwksUri: uri}}}})
	g.Publish(&mesh.RequestAuthentication{Namespace: "shop", Name: "inline", Rules: []*mesh.TokenRule{{Issuer: "me", Keys: &mesh.TokenRule_Jwks{Jwks: jwttest.Keys(t, jwttest.New(t, "me", "1"))}}}})
	told := make(chan map[string]string, 100)
	g.Run("tokens", func(ctx context.Context) error {
		return newTokens("shop", g.keys, g.Logger).run(ctx, g.Store.Snapshot, func(missing map[string]string) {
			select {
			case told <- missing:
			default:
			}
		})
	})
	for deadline := time.After(10 * time.Second); ; {
		select {
		case missing := <-told:
			words := missing["shop/tokens"]
			if len(missing) != 1 || !strings.Contains(words, uri) {
				t.Fatalf("told %v", missing)
			}
			if strings.Contains(words, "is not an address that keys may come from") {
				return
			}
		case <-deadline:
			t.Fatal("it is not told why there are no keys")
		}
	}
}
