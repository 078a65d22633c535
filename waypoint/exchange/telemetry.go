package exchange

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Telemetry tells of each request once: in the access log and in the metrics.
type Telemetry struct {
	log *slog.Logger

	requests                               *prometheus.CounterVec
	durations, requestBytes, responseBytes *prometheus.HistogramVec
	// routed are the durations by what people wrote: the rule of a route.
	routed *prometheus.HistogramVec

	mu sync.Mutex
	// Guarded by mu: the series of labels that were used, until there are too many.
	series map[seriesKey]*series
}

type seriesKey struct {
	source, destination string // uids
	service             string
	code                int
	flag                Flag
	version             int
	grpc                bool
	grpcStatus          string
	principal           spiffe.ID
	route, rule         string
}

type series struct {
	requests                               prometheus.Counter
	durations, requestBytes, responseBytes prometheus.Observer
	routed                                 prometheus.Observer // nil without a route
}

// maxSeries bounds what is remembered of the labels of peers that come and go; past it
// all are looked up anew.
const maxSeries = 10_000

// NewTelemetry registers the metrics.
func NewTelemetry(log *slog.Logger, reg prometheus.Registerer) *Telemetry {
	labels := append(append([]string(nil), conns.LabelNames()...), "response_code", "grpc_response_status")
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		reg.MustRegister(h)
		return h
	}
	bytes := prometheus.ExponentialBuckets(64, 8, 8)
	milliseconds := []float64{0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000}
	t := &Telemetry{
		log: log, series: map[seriesKey]*series{},
		requests:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_requests_total", Help: "Requests."}, labels),
		durations:     histogram("istio_request_duration_milliseconds", "How long requests took, to the end of their responses.", milliseconds, labels...),
		requestBytes:  histogram("istio_request_bytes", "Bodies of requests.", bytes, labels...),
		responseBytes: histogram("istio_response_bytes", "Bodies of responses.", bytes, labels...),
		routed: histogram("ambit_route_request_duration_milliseconds", "How long requests took, by the route and the rule that they matched.",
			milliseconds, "route", "rule"),
	}
	reg.MustRegister(t.requests)
	return t
}

// record tells of a request that is over.
func (t *Telemetry) record(x *exchange) {
	took := time.Since(x.started)
	if x.flag == "" {
		x.flag = NoFlag
	}
	s := t.seriesOf(x)
	s.requests.Inc()
	s.durations.Observe(float64(took) / float64(time.Millisecond))
	s.requestBytes.Observe(float64(x.request.received))
	s.responseBytes.Observe(float64(x.sent))
	if s.routed != nil {
		s.routed.Observe(float64(took) / float64(time.Millisecond))
	}
	t.write(x, took)
}

func (t *Telemetry) seriesOf(x *exchange) *series {
	client := x.client.session.Client
	key := seriesKey{code: x.status, flag: x.flag, version: x.request.Version, grpc: isGRPC(x.request), grpcStatus: x.grpcStatus, principal: client.Identity, route: x.plan.Route, rule: x.plan.Rule}
	if client.Workload != nil {
		key.source = client.Workload.UID
	}
	if x.endpoint != nil {
		key.destination = x.endpoint.UID
	}
	service := x.service()
	if service != nil {
		key.service = service.Key
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s, ok := t.series[key]; ok {
		return s
	}
	if len(t.series) >= maxSeries {
		clear(t.series)
	}
	attempt := conns.Attempt{Direction: conns.Waypoint, Transport: conns.HBONE, Source: client.Peer, Service: service}
	attempt.Destination.Addr, attempt.Destination.Workload = x.at, x.endpoint
	if x.endpoint != nil {
		attempt.Destination.Identity = x.endpoint.Identity
	}
	protocol := "http"
	if key.grpc {
		protocol = "grpc"
	}
	labels := append(conns.Labels(&attempt, protocol, string(x.flag)), strconv.Itoa(x.status), x.grpcStatus)
	s := &series{
		requests: t.requests.WithLabelValues(labels...), durations: t.durations.WithLabelValues(labels...),
		requestBytes: t.requestBytes.WithLabelValues(labels...), responseBytes: t.responseBytes.WithLabelValues(labels...),
	}
	if key.route != "" {
		s.routed = t.routed.WithLabelValues(key.route, key.rule)
	}
	t.series[key] = s
	return s
}

// write is the line of the access log.
func (t *Telemetry) write(x *exchange, took time.Duration) {
	if !t.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	r := x.request
	attrs := make([]slog.Attr, 0, 24)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	if service := x.service(); service != nil {
		text("dst.service", service.Hostname)
	}
	if w := x.endpoint; w != nil {
		text("dst.workload", w.Name)
		text("dst.namespace", w.Namespace)
		text("dst.identity", w.Identity.String())
		text("upstream", x.at.String())
	}
	text("protocol", "HTTP/"+strconv.Itoa(r.Version))
	text("method", r.Method)
	authority, path := x.asked()
	text("authority", authority)
	text("path", path)
	attrs = append(attrs, slog.Int("status", x.status))
	text("grpc_status", x.grpcStatus)
	text("response_flags", string(x.flag))
	text("route", x.plan.Route)
	text("rule", x.plan.Rule)
	attrs = append(attrs, slog.Int64("bytes_recv", r.received), slog.Int64("bytes_sent", x.sent))
	if x.attempts > 1 {
		attrs = append(attrs, slog.Int("attempts", x.attempts))
	}
	text("duration", strconv.FormatFloat(float64(took)/float64(time.Millisecond), 'f', 3, 64)+"ms")
	for _, name := range []string{"traceparent", "x-request-id", "user-agent"} {
		if value, ok := r.Field(name); ok {
			text(name, value)
		}
	}
	if x.span != nil {
		text("trace_id", x.span.SpanContext().TraceID().String())
		text("span_id", x.span.SpanContext().SpanID().String())
	}
	text("error", x.detail)
	x.client.log(t.log).LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}

// log has what is the same of all requests of the connection.
func (c *client) log(to *slog.Logger) *slog.Logger {
	c.logOnce.Do(func() {
		s := c.session
		attrs := []any{slog.String("direction", string(conns.Waypoint)), slog.String("src.addr", s.Client.Addr.String())}
		if w := s.Client.Workload; w != nil {
			attrs = append(attrs, slog.String("src.workload", w.Name), slog.String("src.namespace", w.Namespace))
		}
		if !s.Client.Identity.IsZero() {
			attrs = append(attrs, slog.String("src.identity", s.Client.Identity.String()))
		}
		c.logged = to.With(append(attrs, slog.String("dst.addr", s.Destination.String()))...)
	})
	return c.logged
}

// asked is what the client asked for, whatever a route made of it.
func (x *exchange) asked() (authority, path string) {
	if r := x.request; r.Seen.Path == "" {
		return r.Authority, r.Path
	}
	return x.request.Seen.Authority(), x.request.Seen.Target()
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
