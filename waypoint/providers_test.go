package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	envoy "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"golang.org/x/net/http2"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/jwt/jwttest"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

// provider answers as the test wants.
type provider struct {
	auth.UnimplementedAuthorizationServer
	asked atomic.Int64

	mu     sync.Mutex
	last   *auth.CheckRequest
	answer func(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error)
}

func (p *provider) Check(ctx context.Context, q *auth.CheckRequest) (*auth.CheckResponse, error) {
	p.asked.Add(1)
	p.mu.Lock()
	p.last = q
	answer := p.answer
	p.mu.Unlock()
	return answer(ctx, q)
}

func (p *provider) set(answer func(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = answer
}

func always(said *auth.CheckResponse) func(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error) {
	return func(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error) { return said, nil }
}

func ok(details *auth.OkHttpResponse) *auth.CheckResponse {
	return &auth.CheckResponse{Status: &status.Status{}, HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: details}}
}

var no = &auth.CheckResponse{Status: &status.Status{Code: 7}}

// streams is a listener of what comes through tunnels.
type streams struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *streams) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *streams) Close() error   { return nil }
func (l *streams) Addr() net.Addr { return &net.TCPAddr{} }

// provide runs a provider, in a pod that is a Service.
func (g *guarded) provide(t *testing.T) *provider {
	p := &provider{answer: always(ok(&auth.OkHttpResponse{}))}
	server := grpc.NewServer()
	auth.RegisterAuthorizationServer(server, p)
	l := &streams{conns: make(chan net.Conn), done: make(chan struct{})}
	t.Cleanup(func() { close(l.done); server.Stop() })
	go server.Serve(l)
	pod := g.Pod("judge", "10.9.0.43")
	pod.Serve(pod.ID, func(c net.Conn) {
		over := make(chan struct{})
		select {
		case l.conns <- &closing{Conn: c, done: over}:
			<-over
		case <-l.done:
		}
	})
	g.Service("judge", "10.9.100.5", api.AppProtocol_GRPC, pod)
	return p
}

func custom(change ...func(*mesh.RequestPolicy)) *mesh.RequestPolicy {
	p := &mesh.RequestPolicy{
		Namespace: "shop", Name: "custom", Action: mesh.RequestPolicy_CUSTOM,
		Provider: &mesh.AuthorizationProvider{Service: "shop/judge.shop.svc.cluster.local", Port: 80, Timeout: durationpb.New(500 * time.Millisecond)},
		Rules:    []*mesh.RequestRule{{To: []*mesh.RequestOperation{{NotPaths: exactly("/free")}}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// apply policies to the Service, or to its pod.
func (g *guarded) apply(atPod bool, all ...*mesh.RequestPolicy) {
	var names []string
	for _, p := range all {
		g.Publish(p)
		names = append(names, "shop/"+p.Name)
	}
	if atPod {
		g.app.Policies(names...)
		g.Bind(g.service)
		return
	}
	g.Bind(g.service, func(b *mesh.Binding) { b.Policies = names })
}

// A provider is asked about what the rules match, and its word is done.
func TestProvidersDecide(t *testing.T) {
	for _, atPod := range []bool{false, true} {
		t.Run(fmt.Sprintf("at the pod: %t", atPod), func(t *testing.T) {
			g := startGuarded(t, api.AppProtocol_HTTP11)
			p := g.provide(t)
			g.apply(atPod, custom())
			p.set(always(ok(&auth.OkHttpResponse{
				Headers:              []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "X-User", Value: "ann"}}},
				HeadersToRemove:      []string{"x-secret"},
				ResponseHeadersToAdd: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "X-Judged", Value: "yes"}}},
			})))
			code, body, header := g.do(t, g.http, "/a?x=1", "X-User", "root", "X-Secret", "s")
			if code != 200 || !strings.Contains(body, "x-user: ann\n") || strings.Contains(body, "root") || strings.Contains(body, "x-secret") || header.Get("X-Judged") != "yes" {
				t.Errorf("%d %q %v", code, body, header)
			}
			p.mu.Lock()
			h, from := p.last.GetAttributes().GetRequest().GetHttp(), p.last.GetAttributes().GetSource()
			p.mu.Unlock()
			if h.GetPath() != "/a?x=1" || h.GetHost() != "cart" || from.GetPrincipal() != "spiffe://cluster.local/ns/shop/sa/web" || from.GetAddress().GetSocketAddress().GetAddress() != "10.9.0.2" {
				t.Error(p.last)
			}
			if got := p.asked.Load(); got != 1 {
				t.Errorf("asked %d times about one request", got)
			}
			if code, _, _ := g.do(t, g.http, "/free"); code != 200 || p.asked.Load() != 1 {
				t.Errorf("what no rule matches: %d, asked %d times", code, p.asked.Load())
			}
			p.set(always(&auth.CheckResponse{Status: &status.Status{Code: 16}, HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
				Status: &envoy.HttpStatus{Code: 401}, Body: "who are you?", Headers: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "WWW-Authenticate", Value: "Basic"}}},
			}}}))
			reached := g.reached.Load()
			if code, body, header := g.do(t, g.http, "/"); code != 401 || body != "who are you?" || header.Get("WWW-Authenticate") != "Basic" {
				t.Errorf("%d %q %v", code, body, header)
			}
			p.set(always(no))
			if code, _, _ := g.do(t, g.http, "/"); code != 403 || g.reached.Load() != reached {
				t.Errorf("refused in one word: %d", code)
			}
		})
	}
}

// A provider is told who the client is: of the certificate, and of the policy, only what the
// policy wants. It is read as it came, by the protocol's own types.
func TestProvidersAreToldOfClientsAndPolicies(t *testing.T) {
	g := startGuarded(t, api.AppProtocol_HTTP11)
	p := g.provide(t)
	told := func(change func(*mesh.AuthorizationProvider)) *auth.AttributeContext {
		t.Helper()
		g.apply(false, custom(func(p *mesh.RequestPolicy) { change(p.Provider) }))
		if code, body, _ := g.do(t, g.http, "/a"); code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.last.GetAttributes()
	}
	const client, waypoint = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/way"
	usual := told(func(*mesh.AuthorizationProvider) {})
	if usual.GetSource().GetPrincipal() != client || usual.GetDestination().GetPrincipal() != waypoint || usual.GetSource().GetCertificate() != "" || len(usual.GetContextExtensions()) > 0 {
		t.Errorf("usually it is told %v", usual)
	}
	extensions := map[string]string{"rules": "cart", "empty": ""}
	all := told(func(p *mesh.AuthorizationProvider) { p.ContextExtensions, p.PeerCertificate = extensions, true })
	if !maps.Equal(all.GetContextExtensions(), extensions) || all.GetDestination().GetCertificate() != "" {
		t.Errorf("it is told %v", all)
	}
	encoded := all.GetSource().GetCertificate()
	text, err := url.PathUnescape(encoded)
	block, rest := pem.Decode([]byte(text))
	if err != nil || block == nil || len(rest) > 0 || strings.ContainsAny(encoded, "\n +/=") {
		t.Fatalf("the certificate %q: %v", encoded, err)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(certificate.URIs) != 1 || certificate.URIs[0].String() != client {
		t.Errorf("the certificate is of %v: %v", certificate.URIs, err)
	}
}

// Whatever a provider does but agree: the request is refused, in time.
func TestProvidersThatFail(t *testing.T) {
	g := startGuarded(t, api.AppProtocol_HTTP11)
	p := g.provide(t)
	plain := g.Pod("open", "10.9.0.44", waypointtest.Plain)
	g.Service("open", "10.9.100.6", api.AppProtocol_GRPC, plain)
	listener, err := net.Listen("tcp", fmt.Sprintf("10.9.0.44:%d", waypointtest.AppPort))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	auth.RegisterAuthorizationServer(server, p)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	to := func(service string, port uint32) func(*mesh.RequestPolicy) {
		return func(r *mesh.RequestPolicy) { r.Provider.Service, r.Provider.Port = service, port }
	}
	agree := always(ok(&auth.OkHttpResponse{}))
	for name, c := range map[string]struct {
		policy *mesh.RequestPolicy
		answer func(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error)
	}{
		"an error":              {custom(), func(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error) { return nil, errors.New("no") }},
		"nothing":               {custom(), always(&auth.CheckResponse{})},
		"two words":             {custom(), always(&auth.CheckResponse{Status: &status.Status{}, HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{}}})},
		"a header of two lines": {custom(), always(ok(&auth.OkHttpResponse{Headers: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x", Value: "a\r\nb: c"}}}}))},
		"too long an answer":    {custom(), always(ok(&auth.OkHttpResponse{Headers: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x", Value: strings.Repeat("a", 300<<10)}}}}))},
		"silence": {custom(), func(ctx context.Context, _ *auth.CheckRequest) (*auth.CheckResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}},
		"no such Service": {custom(to("shop/none.shop.svc.cluster.local", 80)), agree},
		"no such port":    {custom(to("shop/judge.shop.svc.cluster.local", 81)), agree},
		"no tunnel":       {custom(to("shop/open.shop.svc.cluster.local", 80)), agree},
		"no provider":     {custom(func(r *mesh.RequestPolicy) { r.Provider = nil }), agree},
		"no timeout":      {custom(func(r *mesh.RequestPolicy) { r.Provider.Timeout = nil }), agree},
	} {
		p.set(c.answer)
		g.apply(false, c.policy)
		began := time.Now()
		if code, body, _ := g.do(t, g.http, "/"); code != 403 {
			t.Errorf("%s: %d %s", name, code, body)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: the client waited %v", name, took)
		}
	}
	if got := g.reached.Load(); got != 0 {
		t.Errorf("%d requests came to the application", got)
	}
	// Only who wants it so is let pass, and not what a provider refuses.
	open := custom(func(r *mesh.RequestPolicy) { r.Provider.FailOpen = true })
	g.apply(false, open)
	p.set(func(context.Context, *auth.CheckRequest) (*auth.CheckResponse, error) { return nil, errors.New("no") })
	if code, _, _ := g.do(t, g.http, "/"); code != 200 {
		t.Errorf("fail open: %d", code)
	}
	p.set(always(no))
	if code, _, _ := g.do(t, g.http, "/"); code != 403 {
		t.Errorf("fail open, and refused: %d", code)
	}
	p.set(agree)
	g.apply(false, custom())
	if code, _, _ := g.do(t, g.http, "/"); code != 200 {
		t.Errorf("in the end: %d", code)
	}
}

// Agreement is not enough where another policy refuses, and nobody is asked then.
func TestProvidersDoNotOverrule(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	allow := &mesh.RequestPolicy{Namespace: "shop", Name: "allow", Action: mesh.RequestPolicy_ALLOW, Rules: []*mesh.RequestRule{{To: []*mesh.RequestOperation{{Paths: exactly("/a")}}}}}
	deny := &mesh.RequestPolicy{Namespace: "shop", Name: "deny", Action: mesh.RequestPolicy_DENY, Rules: []*mesh.RequestRule{{To: []*mesh.RequestOperation{{Paths: exactly("/a")}}}}}
	other := custom(func(p *mesh.RequestPolicy) { p.Name = "other" })
	for name, c := range map[string]struct {
		with        []*mesh.RequestPolicy
		path, token string
		want        int
		asked       int64
	}{
		"alone":                {nil, "/a", "", 200, 1},
		"a DENY":               {[]*mesh.RequestPolicy{deny}, "/a", "", 403, 0},
		"an ALLOW of this":     {[]*mesh.RequestPolicy{allow}, "/a", "", 200, 1},
		"an ALLOW of others":   {[]*mesh.RequestPolicy{allow}, "/b", "", 403, 0},
		"two providers":        {[]*mesh.RequestPolicy{other}, "/b", "", 200, 2},
		"a token that is none": {nil, "/b", "nonsense", 401, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGuarded(t, api.AppProtocol_HTTP11)
			p := g.provide(t)
			g.Publish(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{inline(t, me)}})
			names := []string{"shop/custom"}
			g.Publish(custom())
			for _, one := range c.with {
				g.Publish(one)
				names = append(names, "shop/"+one.Name)
			}
			g.Bind(g.service, func(b *mesh.Binding) {
				slices.Sort(names)
				b.Policies, b.Authentications = names, []string{"shop/tokens"}
			})
			var headers []string
			if c.token != "" {
				headers = []string{"Authorization", "Bearer " + c.token}
			}
			if code, _, _ := g.do(t, g.http, c.path, headers...); code != c.want || p.asked.Load() != c.asked {
				t.Errorf("%d, want %d; asked %d times, want %d", code, c.want, p.asked.Load(), c.asked)
			}
		})
	}
}

// A request that lives goes on while its policy is what it was, and ends with another.
func TestChangingACustomPolicyCutsRequests(t *testing.T) {
	g := startGuarded(t, api.AppProtocol_HTTP11)
	p := g.provide(t)
	g.apply(false, custom())
	response, err := g.http.Get("http://cart/long")
	if err != nil || response.StatusCode != 200 {
		t.Fatal(response, err)
	}
	defer response.Body.Close()
	over := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, response.Body)
		over <- err
	}()
	g.Pod("somebody", "10.9.0.60") // a change of something else
	select {
	case err := <-over:
		t.Fatalf("cut although nothing changed: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	g.Publish(custom(func(p *mesh.RequestPolicy) { p.Rules = []*mesh.RequestRule{{}} }))
	select {
	case err := <-over:
		if err == nil {
			t.Error("it ends as if it were complete")
		}
	case <-time.After(5 * time.Second):
		t.Error("it lives on although nobody was asked under the new policy")
	}
	if got := p.asked.Load(); got != 1 {
		t.Errorf("asked %d times", got)
	}
	if code, _, _ := g.do(t, g.http, "/"); code != http.StatusOK {
		t.Errorf("a new one: %d", code)
	}
}

// A provider is told of bodies as far as its policy wants it, and what goes on is whole.
func TestProvidersAreToldOfBodies(t *testing.T) {
	const limit = 100 << 10 // more than is kept for retries
	bytes := make([]byte, 3*limit)
	for i := range bytes {
		bytes[i] = byte('a' + i%26)
	}
	whole := func(p *mesh.RequestPolicy) { p.Provider.MaxBody = limit }
	partial := func(p *mesh.RequestPolicy) { p.Provider.MaxBody, p.Provider.PartialBody = limit, true }
	open := func(p *mesh.RequestPolicy) { p.Provider.MaxBody, p.Provider.FailOpen = limit, true }
	for _, app := range []api.AppProtocol{api.AppProtocol_HTTP11, api.AppProtocol_HTTP2} {
		for _, second := range []bool{false, true} {
			for _, atPod := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, client of 2: %t, at the pod: %t", app, second, atPod), func(t *testing.T) {
					g := startGuarded(t, app)
					p := g.provide(t)
					client := g.http
					if second {
						transport := &http2.Transport{AllowHTTP: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return g.client.Open(guardedVIP) }}
						t.Cleanup(transport.CloseIdleConnections)
						client = &http.Client{Transport: transport, Timeout: 20 * time.Second}
					}
					for name, c := range map[string]struct {
						policy  func(*mesh.RequestPolicy)
						n, told int
						partial string
						code    int
						expect  bool
						unknown bool // of what length it is
					}{
						"nothing, unless it is wanted": {func(*mesh.RequestPolicy) {}, 10, 0, "", 200, false, false},
						"none":                         {whole, 0, 0, "false", 200, false, false},
						"short":                        {whole, 10, 10, "false", 200, false, false},
						"short, of unknown length":     {whole, 10, 10, "false", 200, false, true},
						"as long as it may be":         {whole, limit, limit, "false", 200, false, false},
						"too long":                     {whole, limit + 1, -1, "", 413, false, false},
						"too long, of unknown length":  {whole, 3 * limit, -1, "", 413, false, true},
						"too long, and failing open":   {open, limit + 1, -1, "", 413, false, false},
						"its beginning":                {partial, 3 * limit, limit, "true", 200, false, false},
						"its beginning, unknown":       {partial, 3 * limit, limit, "true", 200, false, true},
						"held back by the client":      {whole, 10, 10, "false", 200, !second, false},
						"long and held back":           {partial, 3 * limit, limit, "true", 200, !second, false},
					} {
						g.apply(atPod, custom(c.policy))
						before := p.asked.Load()
						p.mu.Lock()
						p.last = nil
						p.mu.Unlock()
						var content io.Reader = strings.NewReader(string(bytes[:c.n]))
						if c.unknown {
							content = struct{ io.Reader }{content}
						}
						q, err := http.NewRequest("POST", "http://cart/a", content)
						if err != nil {
							t.Fatal(err)
						}
						q.Header.Set("X-Envoy-Auth-Partial-Body", "forged")
						if c.expect {
							q.Header.Set("Expect", "100-continue")
							client.Transport.(*http.Transport).ExpectContinueTimeout = 5 * time.Second
						}
						began := time.Now()
						response, err := client.Do(q)
						if err != nil {
							t.Fatalf("%s: %v", name, err)
						}
						answer, _ := io.ReadAll(response.Body)
						response.Body.Close()
						if response.StatusCode != c.code {
							t.Errorf("%s: answered with %d, want %d", name, response.StatusCode, c.code)
						}
						if took := time.Since(began); took > 4*time.Second {
							t.Errorf("%s: it took %s", name, took)
						}
						if want := fmt.Sprintf("body of %d: %x\n", c.n, sha256.Sum256(bytes[:c.n])); c.code == 200 && c.n > 0 && !strings.Contains(string(answer), want) {
							t.Errorf("%s: the application got %q", name, answer)
						}
						if c.told < 0 {
							if p.asked.Load() != before {
								t.Errorf("%s: the provider was asked", name)
							}
							continue
						}
						p.mu.Lock()
						h := p.last.GetAttributes().GetRequest().GetHttp()
						p.mu.Unlock()
						if h.GetBody() != string(bytes[:c.told]) {
							t.Errorf("%s: the provider was told of %d bytes, want %d", name, len(h.GetBody()), c.told)
						}
						if says := h.GetHeaders()["x-envoy-auth-partial-body"]; c.partial != "" && says != c.partial {
							t.Errorf("%s: the provider was told %q about its end, want %q", name, says, c.partial)
						}
					}
				})
			}
		}
	}
}

// A client that does not send what the provider is to be told of is not waited for
// without end, and nothing of it goes on.
func TestBodiesThatDoNotCome(t *testing.T) {
	g := startGuarded(t, api.AppProtocol_HTTP11)
	p := g.provide(t)
	g.apply(false, custom(func(p *mesh.RequestPolicy) {
		p.Provider.MaxBody, p.Provider.PartialBody, p.Provider.FailOpen = 100, true, true
	}))
	second := &http2.Transport{AllowHTTP: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return g.client.Open(guardedVIP) }}
	t.Cleanup(second.CloseIdleConnections)
	var both sync.WaitGroup
	for version, client := range map[string]*http.Client{"HTTP/1.1": g.http, "HTTP/2": {Transport: second}} {
		both.Go(func() {
			r, w := io.Pipe()
			go w.Write([]byte("some"))
			defer w.Close()
			q, err := http.NewRequest("POST", "http://cart/a", r)
			if err != nil {
				t.Error(err)
				return
			}
			q.ContentLength = 50
			began := time.Now()
			response, err := client.Do(q)
			if err != nil {
				t.Errorf("%s: %v", version, err)
				return
			}
			response.Body.Close()
			if response.StatusCode != http.StatusRequestTimeout || time.Since(began) > aheadTimeout+5*time.Second {
				t.Errorf("%s: answered with %d after %s", version, response.StatusCode, time.Since(began))
			}
		})
	}
	both.Wait()
	if p.asked.Load() > 0 || g.reached.Load() > 0 {
		t.Error("the provider was asked, or the application reached")
	}
}
