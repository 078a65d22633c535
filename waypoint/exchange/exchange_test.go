package exchange_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

func TestMain(m *testing.M) { waypointtest.Main(m) }

const vip = "10.9.100.1:80"

// rig is a waypoint before a service of one endpoint.
type rig struct {
	*waypointtest.Mesh
	client, endpoint *waypointtest.Pod
	service          *workload.Service
	stop             func()
	engine           *exchange.Engine

	mu sync.Mutex
	// Guarded by mu: what the test wants.
	plan func(*target.Target, *exchange.Request) exchange.Plan
	deny func(*exchange.Request, *workload.Workload) error
}

func start(t testing.TB, app api.AppProtocol) *rig {
	r := &rig{Mesh: waypointtest.New(t)}
	r.client, r.endpoint = r.Pod("web", "10.9.0.2"), r.Pod("cart", "10.9.0.3")
	r.service = r.Service("cart", "10.9.100.1", app, r.endpoint)
	r.Bind(r.service)
	engine, err := exchange.New(exchange.Config{
		Snapshot: r.Store.Snapshot, Self: r.Self, Policies: r, Router: r, Upstream: r.Upstream,
		Telemetry: exchange.NewTelemetry(r.Logger, r.Metrics), Logger: r.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.engine = engine
	r.Mesh.Run("requests", engine.Run)
	r.stop = r.Start(func(c *server.Config) { c.Policies, c.HTTP = r, engine })
	return r
}

// Route is exchange.Router's.
func (r *rig) Route(_ *workload.Snapshot, t *target.Target, _ target.Client, q *exchange.Request) exchange.Plan {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan != nil {
		return r.plan(t, q)
	}
	return exchange.Plan{Service: t.Service, Port: t.Port}
}

// Request is exchange.Policies'.
func (r *rig) Request(_ *workload.Snapshot, _ *target.Target, _ target.Client, q *exchange.Request, w *workload.Workload, _ netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deny != nil {
		return r.deny(q, w)
	}
	return nil
}

// Authenticate is exchange.Policies'.
func (r *rig) Authenticate(context.Context, *workload.Snapshot, *target.Target, *exchange.Request, time.Time) error {
	return nil
}

// Ask is exchange.Policies'.
func (r *rig) Ask(context.Context, *workload.Snapshot, *target.Target, target.Client, *exchange.Request, *workload.Workload, netip.AddrPort) error {
	return nil
}

// Connection is server.Policies'.
func (r *rig) Connection(*workload.Snapshot, *target.Target, target.Client, *workload.Workload, netip.AddrPort) error {
	return nil
}

// one is a listener of one connection.
type one struct {
	conn chan net.Conn
	done chan struct{}
	addr net.Addr
}

func (l *one) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *one) Close() error   { return nil }
func (l *one) Addr() net.Addr { return l.addr }

// served tells when a connection is over.
type served struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

func (s *served) Close() error {
	s.once.Do(func() { close(s.done) })
	return s.Conn.Close()
}

// serve runs an application at the endpoint.
func (r *rig) serve(h http.HandlerFunc) { serve(r.endpoint, h) }

func serve(pod *waypointtest.Pod, h http.HandlerFunc) {
	pod.Serve(pod.ID, func(c net.Conn) {
		l := &one{conn: make(chan net.Conn, 1), done: make(chan struct{}), addr: c.LocalAddr()}
		l.conn <- &served{Conn: c, done: l.done}
		var protocols http.Protocols
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		(&http.Server{Handler: h, Protocols: &protocols}).Serve(l)
	})
}

// raw sends bytes and returns what comes until the connection ends, or nothing comes.
func (r *rig) raw(t *testing.T, request string) string {
	t.Helper()
	c := r.client.Dial(vip)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	all, _ := io.ReadAll(c)
	return string(all)
}

// http1 is a client that keeps connections.
func (r *rig) http1(t *testing.T) *http.Client {
	transport := &http.Transport{DisableCompression: true, ExpectContinueTimeout: 5 * time.Second, DialContext: func(context.Context, string, string) (net.Conn, error) { return r.client.Open(vip) }}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func (r *rig) http2(t *testing.T) *http.Client {
	transport := &http2.Transport{AllowHTTP: true, DisableCompression: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return r.client.Open(vip) }}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func body(t *testing.T, response *http.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(all)
}

// each runs a test with both versions of HTTP on both sides.
func each(t *testing.T, run func(t *testing.T, r *rig, c *http.Client)) {
	for _, app := range []api.AppProtocol{api.AppProtocol_HTTP11, api.AppProtocol_HTTP2, api.AppProtocol_UNKNOWN} {
		t.Run("HTTP/1.1 to "+app.String(), func(t *testing.T) {
			r := start(t, app)
			run(t, r, r.http1(t))
		})
		t.Run("HTTP/2 to "+app.String(), func(t *testing.T) {
			r := start(t, app)
			run(t, r, r.http2(t))
		})
	}
}

func TestRequestsAndResponsesComeWhole(t *testing.T) {
	each(t, func(t *testing.T, r *rig, c *http.Client) {
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("X-Seen", q.Method+" "+q.Host+q.RequestURI+" "+q.Header.Get("X-Asked"))
			w.Header().Set("Trailer", "X-Sum")
			all, err := io.ReadAll(q.Body)
			if err != nil {
				t.Errorf("the endpoint reads %v", err)
			}
			w.Write(all)
			w.Header().Set("X-Sum", fmt.Sprint(len(all)))
		})
		for i, size := range []int{0, 1, 100, 16 << 10, 300 << 10} {
			q, _ := http.NewRequest("POST", fmt.Sprintf("http://cart.shop/a%%3Fb?n=%d", i), bytes.NewReader(bytes.Repeat([]byte("x"), size)))
			q.Header.Set("X-Asked", "yes")
			response, err := c.Do(q)
			if got := body(t, response, err); len(got) != size {
				t.Errorf("%d bytes came back of %d", len(got), size)
			}
			if got, want := response.Header.Get("X-Seen"), fmt.Sprintf("POST cart.shop/a%%3Fb?n=%d yes", i); got != want {
				t.Errorf("the endpoint saw %q, want %q", got, want)
			}
			if got := response.Trailer.Get("X-Sum"); size > 2048 && got != fmt.Sprint(size) {
				t.Errorf("the trailer says %q of %d", got, size)
			}
		}
		// All in one connection, of the client's and to the endpoint.
		if asked := r.endpoint.Asked(); len(asked) != 1 || !strings.HasPrefix(asked[0].Header.Get("Forwarded"), `for="10.9.0.2:`) {
			t.Errorf("the endpoint was asked for %v", asked)
		}
		line := r.Lines("request", 5)[4]
		for key, want := range map[string]any{
			"status": 200.0, "response_flags": "-", "bytes_recv": 300.0 * 1024, "bytes_sent": 300.0 * 1024, "method": "POST", "path": "/a%3Fb?n=4",
			"dst.workload": "cart", "src.identity": r.client.ID.String(),
		} {
			if line[key] != want {
				t.Errorf("%s is %v, want %v", key, line[key], want)
			}
		}
	})
}

func TestStreamsGoBothWays(t *testing.T) {
	r := start(t, api.AppProtocol_GRPC)
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		lines := bufio.NewReader(q.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			fmt.Fprint(w, "heard "+line)
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	})
	reader, writer := io.Pipe()
	q, _ := http.NewRequest("POST", "http://cart.shop/a.B/C", reader)
	q.Header.Set("Content-Type", "application/grpc")
	q.Header.Set("Te", "trailers")
	response, err := r.http2(t).Do(q)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(response.Body)
	for i := range 3 {
		fmt.Fprintf(writer, "%d\n", i)
		if got, err := lines.ReadString('\n'); got != fmt.Sprintf("heard %d\n", i) {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	// A change that has nothing to do with it leaves it alone.
	r.Bind(r.service, func(b *mesh.Binding) { b.Policies = nil })
	fmt.Fprint(writer, "still\n")
	if got, err := lines.ReadString('\n'); got != "heard still\n" {
		t.Fatalf("got %q, %v", got, err)
	}
	writer.Close()
	io.ReadAll(lines)
	if got := response.Trailer.Get("Grpc-Status"); got != "0" {
		t.Errorf("grpc-status is %q", got)
	}
	if line := r.Lines("request", 1)[0]; line["grpc_status"] != "0" {
		t.Errorf("the line has %v", line)
	}
	if n := counted(t, r, map[string]string{"request_protocol": "grpc", "grpc_response_status": "0", "response_code": "200", "destination_service_name": "cart"}); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

// counted is how many requests with these labels were.
func counted(t *testing.T, r *rig, labels map[string]string) (n float64) {
	t.Helper()
	families, err := r.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "istio_requests_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			matching := 0
			for _, l := range m.GetLabel() {
				if want, ok := labels[l.GetName()]; ok && want == l.GetValue() {
					matching++
				}
			}
			if matching == len(labels) {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// What could not be read is told as well: by whom it came, and for whom.
func TestWhatCannotBeReadIsTold(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	conn := r.client.Dial(vip)
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nno field\r\n\r\n")
	io.Copy(io.Discard, conn)
	line := r.Lines("request", 1)[0]
	for key, want := range map[string]any{"status": 400.0, "response_flags": "DPE", "dst.service": "cart.shop.svc.cluster.local", "src.identity": r.client.ID.String()} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	if n := counted(t, r, map[string]string{"response_flags": "DPE", "response_code": "400", "destination_service_name": "cart", "source_principal": r.client.ID.String()}); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

func TestUpgrade(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Upgrade") != "websocket" || !strings.EqualFold(q.Header.Get("Connection"), "upgrade") {
			t.Errorf("asked with %v", q.Header)
		}
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello ")
		rw.Flush()
		io.Copy(c, rw)
		c.Close()
	})
	c := r.client.Dial(vip)
	fmt.Fprint(c, "GET /chat HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != 101 || response.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%v, %v", response, err)
	}
	fmt.Fprint(c, "ping")
	got := make([]byte, len("hello ping"))
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "hello ping" {
		t.Fatalf("got %q, %v", got, err)
	}
	c.CloseWrite()
	io.ReadAll(reader)
	if line := r.Lines("request", 1)[0]; line["status"] != 101.0 {
		t.Errorf("the log says %v", line)
	}
}

func TestContinue(t *testing.T) {
	each(t, func(t *testing.T, r *rig, c *http.Client) {
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			all, _ := io.ReadAll(q.Body)
			w.Write(all)
		})
		q, _ := http.NewRequest("POST", "http://cart/", strings.NewReader("wanted"))
		q.Header.Set("Expect", "100-continue")
		began := time.Now()
		response, err := c.Do(q)
		if got := body(t, response, err); got != "wanted" {
			t.Errorf("got %q", got)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %s: the client was not told to go on", took)
		}
	})
}

// A client that speaks HTTP/2 is told by GOAWAY, and what it has under way ends in order.
func TestDrainOfHTTP2(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP2)
	release := make(chan struct{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		<-release
		fmt.Fprint(w, "done")
	})
	conn := r.client.Dial(vip)
	c, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	q, _ := http.NewRequest("GET", "http://cart/", nil)
	answered := make(chan string, 1)
	go func() {
		response, err := c.RoundTrip(q)
		if err != nil {
			answered <- err.Error()
			return
		}
		all, _ := io.ReadAll(response.Body)
		answered <- string(all)
	}()
	for len(r.endpoint.Asked()) == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	r.engine.Drain(over)
	for deadline := time.Now().Add(5 * time.Second); c.CanTakeNewRequest(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the client was not told")
		}
	}
	close(release)
	if got := <-answered; got != "done" {
		t.Errorf("got %q", got)
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	r.serve(func(w http.ResponseWriter, q *http.Request) { fmt.Fprintf(w, "<%s>", q.URL.Path) })
	got := r.raw(t, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: a\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	at := 0
	for _, want := range []string{"</1>", "</3>", "connection: close", "</4>"} {
		i := strings.Index(got[at:], want)
		if i < 0 {
			t.Fatalf("%s is missing, or out of order: %s", want, got)
		}
		at += i
	}
	if strings.Contains(got, "</2>") {
		t.Error("HEAD was answered with a body")
	}
}

// A request that is answered before its body was read leaves the connection usable.
func TestABodyThatNobodyReads(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	r.serve(func(w http.ResponseWriter, q *http.Request) { fmt.Fprint(w, "read") })
	r.plan = func(t *target.Target, q *exchange.Request) exchange.Plan {
		if strings.HasPrefix(q.Path, "/no") {
			return exchange.Plan{Answer: &exchange.Answer{Status: 404, Flag: exchange.NoRoute}}
		}
		return exchange.Plan{Service: t.Service, Port: t.Port}
	}
	got := r.raw(t, "POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /GET /yes HTTP/1.1\r\nHost: a\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 404 ") || !strings.HasSuffix(got, "read") || strings.Count(got, "HTTP/1.1") != 2 {
		t.Errorf("answered %q", got)
	}
}

// What could be read in two ways goes nowhere.
func TestMalformedRequests(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	r.serve(func(w http.ResponseWriter, q *http.Request) { t.Errorf("the endpoint got %s %s", q.Method, q.URL) })
	for name, request := range map[string]string{
		"no host":                 "GET / HTTP/1.1\r\n\r\n",
		"two hosts":               "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"two lengths":             "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"length and chunks":       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"another coding":          "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"a folded line":           "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
		"space before the colon":  "GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n",
		"a bare LF":               "GET / HTTP/1.1\nHost: a\n\r\n\r\n",
		"a bare CR":               "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
		"a NUL":                   "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
		"a signed length":         "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
		"CONNECT":                 "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
		"a fragment":              "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
		"a space in the path":     "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
		"another version":         "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"a backslash in the path": "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
		"an encoded separator":    "GET /a%2Fb HTTP/1.1\r\nHost: a\r\n\r\n",
		"parameters of a segment": "GET /admin;x HTTP/1.1\r\nHost: a\r\n\r\n",
		"another host":            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			got := r.raw(t, request)
			if !strings.HasPrefix(got, "HTTP/1.1 400 ") || strings.Count(got, "HTTP/1.1") != 1 {
				t.Errorf("answered %q", got)
			}
		})
	}
	t.Run("a head without an end", func(t *testing.T) {
		if got := r.raw(t, "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", 70<<10)); !strings.HasPrefix(got, "HTTP/1.1 431 ") {
			t.Errorf("answered %q", got)
		}
	})
	if asked := r.endpoint.Asked(); len(asked) != 0 {
		t.Errorf("the endpoint was asked for %v", asked)
	}
}

// A body that goes on past where the head says it ends is no request to the endpoint.
func TestChunksAreReadStrictly(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if _, err := io.ReadAll(q.Body); err == nil {
			t.Error("a body looked complete that was not")
		}
	})
	for _, chunks := range []string{"1\nx\n0\n\n", "0x1\r\nx\r\n0\r\n\r\n", "1\r\nxx\r\n0\r\n\r\n", "1;a=\x01\r\nx\r\n0\r\n\r\n", "0\r\nContent-Length: 3\r\n\r\n", "fffffffffffffffff\r\n", "-1\r\n", "1 \r\nx\r\n0\r\n\r\n"} {
		got := r.raw(t, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+chunks)
		if strings.HasPrefix(got, "HTTP/1.1 200") {
			t.Errorf("%q: answered %q", chunks, got)
		}
	}
}

func TestNothingPasses(t *testing.T) {
	denied := conns.Fail(conns.PolicyDenied, errors.New("denied by the test"))
	for name, test := range map[string]struct {
		change func(*rig)
		status int
		flag   string
	}{
		"policy denies": {func(r *rig) { r.deny = func(_ *exchange.Request, w *workload.Workload) error { return denied } }, 403, "RBAC"},
		"the endpoint's policy denies": {func(r *rig) {
			r.deny = func(_ *exchange.Request, w *workload.Workload) error {
				if w != nil {
					return denied
				}
				return nil
			}
		}, 403, "RBAC"},
		"a policy has not come": {func(r *rig) {
			r.deny = func(*exchange.Request, *workload.Workload) error {
				return conns.Fail(conns.PolicyMissing, errors.New("missing"))
			}
		}, 503, "NC"},
		"no route": {func(r *rig) {
			r.plan = func(*target.Target, *exchange.Request) exchange.Plan {
				return exchange.Plan{Answer: &exchange.Answer{Status: 404, Flag: exchange.NoRoute}}
			}
		}, 404, "NR"},
		"no endpoint": {func(r *rig) { r.Remove(&api.Workload{Uid: "Kubernetes//Pod/shop/cart"}) }, 503, "UH"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, api.AppProtocol_UNKNOWN)
			r.serve(func(http.ResponseWriter, *http.Request) { t.Error("it passed") })
			test.change(r)
			for i, c := range []*http.Client{r.http1(t), r.http2(t)} {
				response, err := c.Post("http://cart/", "text/plain", strings.NewReader("x"))
				body(t, response, err)
				if response.StatusCode != test.status {
					t.Errorf("answered %d, want %d", response.StatusCode, test.status)
				}
				if line := r.Lines("request", i+1)[i]; line["response_flags"] != test.flag {
					t.Errorf("flag is %v, want %s: %v", line["response_flags"], test.flag, line)
				}
			}
			if asked := r.endpoint.Asked(); len(asked) != 0 {
				t.Errorf("the endpoint was asked for %v", asked)
			}
		})
	}
}

// What an endpoint says that is no response never reaches the client as one.
func TestMalformedResponses(t *testing.T) {
	for name, test := range map[string]struct {
		says   string
		status string
	}{
		"nothing":                 {"", "503"},
		"junk":                    {"junk\r\n\r\n", "502"},
		"two lengths":             {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "502"},
		"length and chunks":       {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "502"},
		"101 that nobody asked":   {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "502"},
		"a field without a colon": {"HTTP/1.1 200 OK\r\nX\r\n\r\n", "502"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, api.AppProtocol_HTTP11)
			r.endpoint.Serve(r.endpoint.ID, func(c net.Conn) {
				c.Read(make([]byte, 1024))
				io.WriteString(c, test.says)
				c.Close()
			})
			if got := r.raw(t, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 "+test.status) {
				t.Errorf("answered %q", got)
			}
		})
	}
}

func TestTimeoutsAndRetries(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	var mu sync.Mutex
	asked := map[string]int{}
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		asked[q.URL.Path]++
		n := asked[q.URL.Path]
		mu.Unlock()
		switch {
		case q.URL.Path == "/slow":
			<-q.Context().Done()
		case q.URL.Path == "/second" && n == 1 || q.URL.Path == "/again":
			w.WriteHeader(503)
		default:
			io.Copy(w, q.Body)
		}
	})
	r.plan = func(t *target.Target, q *exchange.Request) exchange.Plan {
		p := exchange.Plan{Service: t.Service, Port: t.Port, Timeout: 300 * time.Millisecond, Retries: 2, RetryOn: []int{503}}
		if q.Path == "/again" {
			p.Backoff = time.Second
		}
		return p
	}
	response, err := r.http1(t).Get("http://cart/slow")
	if body(t, response, err); response.StatusCode != 504 {
		t.Errorf("answered %d, want 504", response.StatusCode)
	}
	response, err = r.http1(t).Post("http://cart/second", "text/plain", strings.NewReader("whole"))
	if got := body(t, response, err); response.StatusCode != 200 || got != "whole" {
		t.Errorf("answered %d, %q", response.StatusCode, got)
	}
	response, err = r.http1(t).Get("http://cart/again")
	if body(t, response, err); response.StatusCode != 504 {
		t.Errorf("the time has passed before the next attempt: answered %d, want 504", response.StatusCode)
	}
	for _, line := range r.Lines("request", 3) {
		if line["path"] == "/second" && line["attempts"] != 2.0 {
			t.Errorf("the log says %v", line)
		}
	}
}

// What an endpoint may have acted on comes to none again, unless that does no harm, or the
// route wants it so for what was answered.
func TestWhatIsSentAgain(t *testing.T) {
	gone := func(c net.Conn, _ *http.Request) { c.Close() }
	late := func(c net.Conn, _ *http.Request) { time.Sleep(400 * time.Millisecond) }
	junk := func(c net.Conn, _ *http.Request) { io.WriteString(c, "junk\r\n\r\n"); c.Close() }
	says := func(c net.Conn, _ *http.Request) {
		io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
	}
	for _, c := range []struct {
		name, method string
		first        func(net.Conn, *http.Request)
		retries      int
		want, asked  int
	}{
		{"gone", "GET", gone, 1, 200, 2}, {"gone", "PUT", gone, 1, 200, 2}, {"gone", "POST", gone, 1, 503, 1}, {"gone", "PATCH", gone, 1, 503, 1}, {"gone", "GET", gone, 0, 503, 1},
		{"late", "DELETE", late, 1, 200, 2}, {"late", "POST", late, 1, 504, 1},
		{"junk", "HEAD", junk, 1, 200, 2}, {"junk", "POST", junk, 1, 502, 1},
		{"503", "POST", says, 1, 200, 2}, {"503", "POST", says, 0, 503, 1},
	} {
		t.Run(fmt.Sprint(c.name, " ", c.method, " ", c.retries), func(t *testing.T) {
			r := start(t, api.AppProtocol_HTTP11)
			var asked atomic.Int32
			r.endpoint.Serve(r.endpoint.ID, func(conn net.Conn) {
				for lines := bufio.NewReader(conn); ; {
					q, err := http.ReadRequest(lines)
					if err != nil {
						return
					}
					io.Copy(io.Discard, q.Body)
					if asked.Add(1) == 1 {
						c.first(conn, q)
						continue
					}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			r.plan = func(t *target.Target, q *exchange.Request) exchange.Plan {
				return exchange.Plan{Service: t.Service, Port: t.Port, Retries: c.retries, RetryOn: []int{503}, AttemptTimeout: 200 * time.Millisecond}
			}
			q, err := http.NewRequest(c.method, "http://cart/", strings.NewReader("once"))
			if err != nil {
				t.Fatal(err)
			}
			response, err := r.http1(t).Do(q)
			body(t, response, err)
			if response.StatusCode != c.want || int(asked.Load()) != c.asked {
				t.Errorf("answered %d after %d times, want %d after %d", response.StatusCode, asked.Load(), c.want, c.asked)
			}
		})
	}
}

// A connection that the endpoint has closed meanwhile is noticed before anything is sent on
// it that could not be sent again; one that it closes when asked is not.
func TestKeptConnectionsThatAreOver(t *testing.T) {
	for _, c := range []struct {
		name, method string
		again        bool // the endpoint reads the second request before it closes
		want         int
	}{{"before", "POST", false, 200}, {"before", "GET", false, 200}, {"when asked", "GET", true, 200}, {"when asked", "POST", true, 503}} {
		t.Run(c.name+" "+c.method, func(t *testing.T) {
			r := start(t, api.AppProtocol_HTTP11)
			var connections atomic.Int32
			closed := make(chan struct{})
			r.endpoint.Serve(r.endpoint.ID, func(conn net.Conn) {
				first := connections.Add(1) == 1
				for lines := bufio.NewReader(conn); ; {
					q, err := http.ReadRequest(lines)
					if err != nil {
						return
					}
					io.Copy(io.Discard, q.Body)
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					if first {
						if c.again {
							http.ReadRequest(lines)
						}
						conn.Close()
						close(closed)
						return
					}
				}
			})
			client := r.http1(t)
			response, err := client.Get("http://cart/")
			body(t, response, err)
			if !c.again {
				<-closed
				time.Sleep(100 * time.Millisecond) // on its way to the waypoint
			}
			q, err := http.NewRequest(c.method, "http://cart/", strings.NewReader("once"))
			if err != nil {
				t.Fatal(err)
			}
			response, err = client.Do(q)
			body(t, response, err)
			if response.StatusCode != c.want {
				t.Errorf("answered %d, want %d", response.StatusCode, c.want)
			}
		})
	}
}

// What an endpoint that speaks HTTP/2 says it has not acted on is sent again, whatever it is.
func TestWhatAnEndpointRefused(t *testing.T) {
	for name, refuse := range map[string]func(*http2.Framer, uint32){
		"REFUSED_STREAM": func(f *http2.Framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) },
		"GOAWAY":         func(f *http2.Framer, stream uint32) { f.WriteGoAway(stream-2, http2.ErrCodeNo, nil) },
		"INTERNAL_ERROR": func(f *http2.Framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeInternal) },
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, api.AppProtocol_HTTP2)
			var asked atomic.Int32
			r.endpoint.Serve(r.endpoint.ID, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
				f := http2.NewFramer(conn, conn)
				f.WriteSettings()
				for {
					frame, err := f.ReadFrame()
					if err != nil {
						return
					}
					switch frame := frame.(type) {
					case *http2.SettingsFrame:
						if !frame.IsAck() {
							f.WriteSettingsAck()
						}
					case *http2.HeadersFrame:
						if asked.Add(1) == 2 {
							refuse(f, frame.StreamID)
							continue
						}
						f.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.StreamID, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: true}) // :status 200
					}
				}
			})
			r.plan = func(t *target.Target, q *exchange.Request) exchange.Plan {
				return exchange.Plan{Service: t.Service, Port: t.Port, Retries: 1}
			}
			client := r.http1(t)
			response, err := client.Post("http://cart/", "text/plain", strings.NewReader("first"))
			if body(t, response, err); response.StatusCode != 200 {
				t.Fatalf("the first is answered with %d", response.StatusCode)
			}
			response, err = client.Post("http://cart/", "text/plain", strings.NewReader("second"))
			body(t, response, err)
			want := map[bool][2]int{true: {503, 2}, false: {200, 3}}[name == "INTERNAL_ERROR"]
			if got := [2]int{response.StatusCode, int(asked.Load())}; got != want {
				t.Errorf("answered, after how many times: %v, want %v", got, want)
			}
		})
	}
}

// An endpoint that takes requests and does not answer them is asked no more, for a time, unless it is the only one.
func TestWhoDoesNotAnswerIsLeftAlone(t *testing.T) {
	const requests = 40
	for _, c := range []struct {
		name        string
		app         api.AppProtocol
		alone       bool
		least, most int // how many of the requests fail
	}{
		{"HTTP/1.1", api.AppProtocol_HTTP11, false, 1, endpoints.Threshold},
		{"HTTP/2", api.AppProtocol_HTTP2, false, 1, endpoints.Threshold},
		{"the only one", api.AppProtocol_HTTP11, true, requests, requests},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, c.app)
			breaksOff := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
			if c.alone {
				r.serve(breaksOff)
			} else {
				r.serve(func(http.ResponseWriter, *http.Request) {})
				bad := r.Pod("bad", "10.9.0.4")
				serve(bad, breaksOff)
				r.service = r.Service("cart", "10.9.100.1", c.app, r.endpoint, bad)
			}
			client := r.http1(t)
			failed := 0
			for range requests {
				response, err := client.Post("http://cart/", "text/plain", strings.NewReader("once"))
				if body(t, response, err); response.StatusCode != 200 {
					failed++
				}
			}
			if failed < c.least || failed > c.most {
				t.Errorf("%d of %d requests failed, want %d to %d", failed, requests, c.least, c.most)
			}
		})
	}
}

func TestRoutesChangeWhatGoesOn(t *testing.T) {
	each(t, func(t *testing.T, r *rig, c *http.Client) {
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			fmt.Fprintf(w, "%s%s %s %s", q.Host, q.RequestURI, q.Header.Get("X-Added"), q.Header.Get("X-Removed"))
		})
		r.plan = func(t *target.Target, q *exchange.Request) exchange.Plan {
			return exchange.Plan{
				Service: t.Service, Port: t.Port,
				Request: func(o *exchange.Outgoing) {
					o.Authority, o.Path = "other", "/new?x=1"
					for i := range o.Fields {
						if o.Fields[i].Name == "x-removed" {
							o.Fields[i] = http1.Field{Name: "x-added", Value: "yes"}
						}
					}
				},
				Response: func(status int, fields []http1.Field) []http1.Field {
					return append(fields, http1.Field{Name: "x-route", Value: fmt.Sprint(status)})
				},
			}
		}
		q, _ := http.NewRequest("GET", "http://cart/old", nil)
		q.Header.Set("X-Removed", "no")
		response, err := c.Do(q)
		if got := body(t, response, err); got != "other/new?x=1 yes " {
			t.Errorf("the endpoint saw %q", got)
		}
		if response.Header.Get("X-Route") != "200" {
			t.Errorf("the client got %v", response.Header)
		}
		if line := r.Lines("request", 1)[0]; line["path"] != "/old" || line["authority"] != "cart" {
			t.Errorf("the log says %v", line)
		}
	})
}

func TestMirror(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		all, _ := io.ReadAll(q.Body)
		w.Write(all)
	})
	shadow := r.Pod("shadow", "10.9.0.4")
	got := make(chan string, 10)
	shadow.Serve(shadow.ID, func(c net.Conn) {
		q, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			t.Error(err)
			return
		}
		all, _ := io.ReadAll(q.Body)
		got <- q.Method + " " + q.Host + q.URL.Path + " " + string(all)
		c.(interface{ Reset() error }).Reset() // what becomes of it is nobody's business
	})
	s := r.Service("shadow", "10.9.100.2", api.AppProtocol_HTTP11, shadow)
	r.plan = func(t *target.Target, q *exchange.Request) exchange.Plan {
		return exchange.Plan{Service: t.Service, Port: t.Port, Mirrors: []exchange.Mirror{{Service: s, Port: s.Ports[0]}}}
	}
	c := r.http1(t)
	for _, sent := range []string{"", "x", strings.Repeat("x", 10_000)} {
		response, err := c.Post("http://cart/a", "text/plain", strings.NewReader(sent))
		if back := body(t, response, err); back != sent {
			t.Errorf("%d bytes came back of %d", len(back), len(sent))
		}
		select {
		case copied := <-got:
			if copied != "POST cart/a "+sent {
				t.Errorf("copied %.50q", copied)
			}
		case <-time.After(5 * time.Second):
			t.Error("not copied")
		}
	}
}

// A stream lives through changes, but not through the one that denies it.
func TestStreamsAreJudgedAgain(t *testing.T) {
	each(t, func(t *testing.T, r *rig, c *http.Client) {
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			fmt.Fprint(w, "begun")
			w.(http.Flusher).Flush()
			<-q.Context().Done()
		})
		response, err := c.Get("http://cart/")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(response.Body, make([]byte, len("begun"))); err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		r.deny = func(_ *exchange.Request, w *workload.Workload) error {
			return conns.Fail(conns.PolicyDenied, errors.New("denied by the test"))
		}
		r.mu.Unlock()
		r.Pod("bystander", "10.9.0.9") // whatever changes
		if rest, err := io.ReadAll(response.Body); err == nil {
			t.Errorf("it ended in order, after %q", rest)
		}
		if line := r.Lines("request", 1)[0]; line["response_flags"] != "RBAC" {
			t.Errorf("the log says %v", line)
		}
	})
}

// Before a binding goes, to another waypoint or to none, clients are told to leave, and what is under way ends in order.
func TestClientsLeaveWhenTheyAreNotSentHereAnyMore(t *testing.T) {
	for name, to := range map[string]string{"to none": "", "to another": "other"} {
		t.Run(name, func(t *testing.T) { clientsLeave(t, to) })
	}
}

func clientsLeave(t *testing.T, to string) {
	each(t, func(t *testing.T, r *rig, c *http.Client) {
		r.Lead(r.service, "way", "")
		release := make(chan struct{})
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path == "/wait" {
				<-release
			}
			fmt.Fprint(w, "done")
		})
		answered := make(chan error, 1)
		go func() {
			response, err := c.Get("http://cart/wait")
			if err == nil {
				response.Body.Close()
				if response.StatusCode != http.StatusOK || response.ProtoMajor == 1 && !response.Close {
					err = fmt.Errorf("%s, close is %v", response.Status, response.Close)
				}
			}
			answered <- err
		}()
		for len(r.endpoint.Asked()) == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		idle := r.client.Dial(vip)
		fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(idle), nil)
		body(t, response, err)

		r.Lead(r.service, to, "way")
		idle.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the idle connection ends with %v, want EOF", err)
		}
		close(release)
		if err := <-answered; err != nil {
			t.Errorf("the request under way: %v", err)
		}
		// Who comes late, not having heard of it, is served, since the binding is still there,
		// and told to leave as well.
		idle = r.client.Dial(vip)
		fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		response, err = http.ReadResponse(bufio.NewReader(idle), nil)
		if got := body(t, response, err); got != "done" {
			t.Errorf("got %q", got)
		}
		idle.SetReadDeadline(time.Now().Add(4 * time.Second))
		if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the late connection ends with %v, want EOF", err)
		}
	})
}

// Once the waypoint ends, a client that is between two requests loses nothing, and one
// that is within one gets its response and is told to go.
func TestDrain(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP11)
	r.DrainTimeout = 5 * time.Second
	release := make(chan struct{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/wait" {
			<-release
		}
		fmt.Fprint(w, "done")
	})
	idle, busy := r.client.Dial(vip), r.client.Dial(vip)
	fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(idle), nil)
	body(t, response, err)
	fmt.Fprint(busy, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
	time.Sleep(100 * time.Millisecond)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.stop()
	}()
	idle.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle connection ends with %v, want EOF", err)
	}
	close(release)
	response, err = http.ReadResponse(bufio.NewReader(busy), nil)
	if got := body(t, response, err); got != "done" || !response.Close {
		t.Errorf("answered %q, close is %v", got, response.Close)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("it does not end")
	}
}
