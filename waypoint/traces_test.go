package main

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

// spans is a collector's OTLP receiver, and what it got.
type spans struct {
	collector.UnimplementedTraceServiceServer

	mu sync.Mutex
	// Guarded by mu.
	all       []*tracepb.Span
	resources []*commonpb
}

type commonpb = v1.KeyValue

func (s *spans) Export(_ context.Context, in *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range in.ResourceSpans {
		s.resources = r.Resource.Attributes
		for _, scope := range r.ScopeSpans {
			s.all = append(s.all, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func said(attributes []*v1.KeyValue, key string) string {
	for _, a := range attributes {
		if a.Key == key {
			if n, ok := a.Value.Value.(*v1.AnyValue_IntValue); ok {
				return http.StatusText(int(n.IntValue))
			}
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// conns is a listener of connections that come by another way.
type tunnelled struct {
	came chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *tunnelled) Accept() (net.Conn, error) {
	select {
	case c := <-l.came:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *tunnelled) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *tunnelled) Addr() net.Addr { return &net.TCPAddr{} }

// A request with a trace is a part of it, one without begins one, and one that its client
// does not want recorded is not; the endpoint is told of the waypoint's part. Spans reach
// a collector that is a Service of the mesh through a tunnel, as nothing else would.
func TestSpansOfRequests(t *testing.T) {
	m := waypointtest.New(t)
	client, endpoint, pod := m.Pod("web", "10.9.0.2"), m.Pod("cart", "10.9.0.3"), m.Pod("collector", "10.9.0.4")
	cart := m.Service("cart", "10.9.100.1", api.AppProtocol_HTTP11, endpoint)
	m.Service("collector", "10.9.100.2", api.AppProtocol_GRPC, pod)
	m.Bind(cart)

	got := &spans{}
	receiver := grpc.NewServer()
	collector.RegisterTraceServiceServer(receiver, got)
	listener := &tunnelled{came: make(chan net.Conn), done: make(chan struct{})}
	go receiver.Serve(listener)
	t.Cleanup(receiver.Stop)
	pod.Serve(pod.ID, func(c net.Conn) {
		over := &lasting{Conn: c, done: make(chan struct{})}
		listener.came <- over
		<-over.done
	})

	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
	collectorURL, err := url.Parse("http://collector.shop.svc:80")
	if err != nil {
		t.Fatal(err)
	}
	traces, err := newTraces(settings{Gateway: "way", PodNamespace: "shop", PodName: "way-0", NodeName: "n1", Traces: collectorURL},
		issuers{snapshot: m.Store.Snapshot, self: m.Self, upstream: m.Upstream}, m.Logger)
	if err != nil {
		t.Fatal(err)
	}
	judges := newPolicies(nil, nil, nil, m.Logger)
	engine, err := exchange.New(exchange.Config{
		Snapshot: m.Store.Snapshot, Self: m.Self, Policies: judges, Router: newRouter(m.Logger), Upstream: m.Upstream,
		Telemetry: exchange.NewTelemetry(m.Logger, m.Metrics), Tracer: traces.tracer(), Logger: m.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Run("requests", engine.Run)
	m.Start(func(c *server.Config) { c.Policies, c.HTTP = judges, engine })
	seen := make(chan http.Header, 10)
	serving := &tunnelled{came: make(chan net.Conn), done: make(chan struct{})}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		seen <- q.Header
		if q.URL.Path == "/fails" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})}
	go app.Serve(serving)
	t.Cleanup(func() { app.Close() })
	endpoint.Serve(endpoint.ID, func(c net.Conn) {
		over := &lasting{Conn: c, done: make(chan struct{})}
		serving.came <- over
		<-over.done
	})
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return client.Open("10.9.100.1:80") }}
	t.Cleanup(transport.CloseIdleConnections)

	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for name, c := range map[string]struct {
		path        string
		traceparent []string
		recorded    bool
		sameTrace   bool
	}{
		"/recorded":    {"/recorded", []string{"00-" + trace + "-" + parent + "-01"}, true, true},
		"/not-wanted":  {"/not-wanted", []string{"00-" + trace + "-" + parent + "-00"}, false, true},
		"/begins":      {"/begins", nil, true, false},
		"/no-trace-id": {"/no-trace-id", []string{"00-00000000000000000000000000000000-" + parent + "-01"}, true, false},
		"/twice":       {"/twice", []string{"00-" + trace + "-" + parent + "-01", "00-" + trace + "-" + parent + "-01"}, true, false},
		"/fails":       {"/fails", nil, true, false},
	} {
		q, err := http.NewRequest("GET", "http://cart"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header["Traceparent"] = c.traceparent
		response, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		forwarded := (<-seen)["Traceparent"]
		if len(forwarded) != 1 {
			t.Fatalf("%s: the endpoint got %q", name, forwarded)
		}
		parts := strings.Split(forwarded[0], "-")
		if len(parts) != 4 || parts[2] == parent || (parts[1] == trace) != c.sameTrace || (parts[3] == "01") != c.recorded {
			t.Errorf("%s: the endpoint got %q", name, forwarded)
			continue
		}
		var span *tracepb.Span
		find := func() bool {
			got.mu.Lock()
			defer got.mu.Unlock()
			i := slices.IndexFunc(got.all, func(s *tracepb.Span) bool { return hex.EncodeToString(s.SpanId) == parts[2] })
			if i >= 0 {
				span = got.all[i]
			}
			return i >= 0
		}
		for began := time.Now(); !find() && c.recorded; time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s: no span %s came to the collector", name, parts[2])
			}
		}
		if !c.recorded {
			continue
		}
		if hex.EncodeToString(span.TraceId) != parts[1] || (hex.EncodeToString(span.ParentSpanId) == parent) != c.sameTrace {
			t.Errorf("%s: %v", name, span)
		}
		failed := c.path == "/fails"
		if said(span.Attributes, "url.path") != c.path || said(span.Attributes, "ambit.destination.workload") != "shop/cart" || said(span.Attributes, "ambit.source.workload") != "shop/web" ||
			(said(span.Attributes, "http.response.status_code") == "OK") == failed || (span.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR) != failed {
			t.Errorf("%s: says %v, %v", name, span.Attributes, span.Status)
		}
	}
	// What is not sent yet goes when the process ends.
	traces.close()
	got.mu.Lock()
	defer got.mu.Unlock()
	if len(got.all) != 5 || said(got.resources, "service.name") != "way.shop" || said(got.resources, "k8s.pod.name") != "way-0" {
		t.Errorf("%d spans of %v", len(got.all), got.resources)
	}
	if asked := pod.Asked(); len(asked) == 0 {
		t.Error("the collector was not reached through a tunnel")
	}
}

// lasting tells when it is closed: who serves it returns before.
type lasting struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

func (l *lasting) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Conn.(hbone.Stream).Close()
}

// A collector that is not there costs nothing but its spans.
func TestCollectorIsNotThere(t *testing.T) {
	m := waypointtest.New(t)
	traces, err := newTraces(settings{Gateway: "way", PodNamespace: "shop", Traces: &url.URL{Scheme: "http", Host: "127.0.0.1:1"}},
		issuers{snapshot: m.Store.Snapshot, self: m.Self, upstream: m.Upstream}, m.Logger)
	if err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		_, span := traces.tracer().Start(t.Context(), "GET")
		span.End()
	}
	began := time.Now()
	traces.close()
	if took := time.Since(began); took > 2*lastSpans {
		t.Errorf("the process would end after %v", took)
	}
}
