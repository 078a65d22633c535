package exchange

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// traceContext is how traces go from hop to hop: W3C Trace Context.
var traceContext propagation.TraceContext

// carried are the fields of a message as propagators want them.
type carried struct{ fields *[]http1.Field }

// Get returns nothing of a field that is there twice: that is no trace to go on with.
func (c carried) Get(name string) (value string) {
	for n, f := range *c.fields {
		if f.Name != name {
			continue
		}
		if slices.ContainsFunc((*c.fields)[n+1:], func(f http1.Field) bool { return f.Name == name }) {
			return ""
		}
		return f.Value
	}
	return ""
}

func (c carried) Set(name, value string) {
	*c.fields = append(*c.fields, http1.Field{Name: name, Value: value})
}

func (c carried) Keys() []string { return nil } // of no use to traceContext

// beginSpan makes the request a part of its client's trace, or the first part of one.
func (x *exchange) beginSpan() {
	tracer := x.client.engine.cfg.Tracer
	if tracer == nil {
		return
	}
	r := x.request
	parent := traceContext.Extract(context.Background(), carried{&r.Fields})
	_, x.span = tracer.Start(parent, r.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.started))
}

// sendSpan has the endpoint's part belong to this one.
func (x *exchange) sendSpan() {
	if x.span == nil {
		return
	}
	fields := slices.DeleteFunc(slices.Clone(x.outgoing.Fields), func(f http1.Field) bool { return slices.Contains(traceContext.Fields(), f.Name) })
	traceContext.Inject(trace.ContextWithSpan(context.Background(), x.span), carried{&fields})
	x.outgoing.Fields = fields
}

// endSpan says what became of the request, by the semantic conventions for HTTP.
func (x *exchange) endSpan() {
	if x.span == nil {
		return
	}
	defer x.span.End()
	if !x.span.IsRecording() {
		return
	}
	r, client := x.request, x.client.session.Client
	authority, _ := x.asked()
	set := func(key, value string) {
		if value != "" {
			x.span.SetAttributes(attribute.String(key, value))
		}
	}
	set("http.request.method", r.Method)
	set("url.scheme", "http")
	set("server.address", authority)
	set("url.path", r.Seen.Path)
	set("url.query", strings.TrimPrefix(r.Seen.Query, "?"))
	set("network.protocol.name", "http")
	set("network.protocol.version", strconv.Itoa(r.Version))
	set("client.address", client.Addr.Addr().String())
	set("ambit.route", x.plan.Route)
	set("ambit.response_flags", string(x.flag))
	set("ambit.source.identity", client.Identity.String())
	if w := client.Workload; w != nil {
		set("ambit.source.workload", w.Namespace+"/"+w.Name)
	}
	if service := x.service(); service != nil {
		set("ambit.destination.service", service.Hostname)
	}
	if code, err := strconv.Atoi(x.grpcStatus); err == nil {
		x.span.SetAttributes(attribute.Int("rpc.grpc.status_code", code))
	}
	if w := x.endpoint; w != nil {
		set("ambit.destination.workload", w.Namespace+"/"+w.Name)
		set("network.peer.address", x.at.Addr().String())
	}
	if agent, ok := r.Field("user-agent"); ok {
		set("user_agent.original", agent)
	}
	if x.status > 0 {
		x.span.SetAttributes(attribute.Int("http.response.status_code", x.status))
	}
	if x.attempts > 1 {
		x.span.SetAttributes(attribute.Int("http.request.resend_count", x.attempts-1))
	}
	// What the client did wrong is no error of the server's.
	if x.status >= http.StatusInternalServerError || !x.ended && x.status != http.StatusSwitchingProtocols {
		x.span.SetStatus(codes.Error, x.detail)
	}
}
