package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// router says where requests go, by the routes attached to what they are for.
type router struct {
	mu sync.Mutex
	// Guarded by mu: by the bindings that they were made of, which never change.
	tables map[*workload.Binding]*route.Table
}

// maxTables is how many are kept before those of former bindings are let go.
const maxTables = 4096

func newRouter() *router { return &router{tables: map[*workload.Binding]*route.Table{}} }

func (r *router) table(b *workload.Binding) *route.Table {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.tables[b]
	if !ok {
		if len(r.tables) >= maxTables {
			clear(r.tables)
		}
		t = route.Compile(b.Routes)
		r.tables[b] = t
	}
	return t
}

// Route is exchange.Router's.
func (r *router) Route(s *workload.Snapshot, t *target.Target, c target.Client, q *exchange.Request) exchange.Plan {
	direct := exchange.Plan{Service: t.Service, Port: t.Port}
	if t.Service == nil || len(t.Binding.Routes) == 0 {
		return direct
	}
	m, matched, attached := r.table(t.Binding).Decide(&q.Seen, t.Port.Service, c.Identity.Namespace)
	switch {
	case !attached:
		return direct
	case !matched:
		return exchange.Plan{Service: t.Service, Answer: &exchange.Answer{Status: http.StatusNotFound, Flag: exchange.NoRoute, Detail: "no rule of the attached routes matches"}}
	}
	p := plan{snapshot: s, target: t, request: q, match: &m}
	return p.make()
}

// plan is made of one rule for one request.
type plan struct {
	snapshot *workload.Snapshot
	target   *target.Target
	request  *exchange.Request
	match    *route.Match
	out      exchange.Plan

	requests  []func(*exchange.Outgoing)
	responses []func([]http1.Field) []http1.Field
}

func (p *plan) make() exchange.Plan {
	rule := p.match.Rule
	p.out = exchange.Plan{
		Route: p.match.Name(), Rule: rule.GetName(), Service: p.target.Service, Port: p.target.Port,
		Timeout: rule.GetRequestTimeout().AsDuration(), AttemptTimeout: rule.GetBackendRequestTimeout().AsDuration(),
	}
	if retry := rule.GetRetry(); retry != nil {
		p.out.Retries, p.out.Backoff = int(retry.GetAttempts()), retry.GetBackoff().AsDuration()
		for _, code := range retry.GetCodes() {
			p.out.RetryOn = append(p.out.RetryOn, int(code))
		}
	}
	if p.match.Invalid != "" {
		return p.invalid(p.match.Invalid)
	}
	if answered := p.filters(rule.GetFilters()); answered {
		return p.out
	}
	backend := pick(rule.GetBackends())
	if backend == nil {
		return p.invalid("the rule has no backend that takes requests")
	}
	if answered := p.filters(backend.GetFilters()); answered {
		return p.out
	}
	service, port, err := p.backend(backend)
	if err != nil {
		return p.invalid(err.Error())
	}
	p.out.Service, p.out.Port = service, port
	p.finish()
	return p.out
}

// invalid answers what cannot be carried out.
func (p *plan) invalid(why string) exchange.Plan {
	p.out.Answer = &exchange.Answer{Status: http.StatusInternalServerError, Flag: exchange.Invalid, Detail: why}
	return p.out
}

func (p *plan) backend(b *mesh.RouteBackend) (*workload.Service, workload.Port, error) {
	if b.GetInvalid() != "" {
		return nil, workload.Port{}, fmt.Errorf("backend %s: %s", b.GetService(), b.GetInvalid())
	}
	service, ok := p.snapshot.Service(b.GetService())
	if !ok {
		return nil, workload.Port{}, fmt.Errorf("backend %s is not known", b.GetService())
	}
	port, ok := service.Port(uint16(b.GetPort()))
	if !ok || b.GetPort() > 65535 {
		return nil, workload.Port{}, fmt.Errorf("backend %s has no port %d", b.GetService(), b.GetPort())
	}
	return service, port, nil
}

// pick takes a backend by the weights.
func pick(backends []*mesh.RouteBackend) *mesh.RouteBackend {
	var total uint64
	for _, b := range backends {
		total += uint64(b.GetWeight())
	}
	if total == 0 {
		return nil
	}
	at := rand.Uint64N(total)
	for _, b := range backends {
		if weight := uint64(b.GetWeight()); at < weight {
			return b
		} else {
			at -= weight
		}
	}
	return nil
}

// filters takes over what they do. It tells whether that is all there is to the request.
func (p *plan) filters(list []*mesh.RouteFilter) (answered bool) {
	for _, f := range list {
		if err := filter.Check(f); err != nil {
			p.invalid(err.Error())
			return true
		}
		switch f := f.GetFilter().(type) {
		case *mesh.RouteFilter_RequestHeaders:
			p.requests = append(p.requests, func(o *exchange.Outgoing) { setHeaders(o, f.RequestHeaders) })
		case *mesh.RouteFilter_ResponseHeaders:
			p.responses = append(p.responses, func(fields []http1.Field) []http1.Field { return filter.Headers(fields, f.ResponseHeaders) })
		case *mesh.RouteFilter_Rewrite:
			p.requests = append(p.requests, func(o *exchange.Outgoing) { p.rewrite(o, f.Rewrite) })
		case *mesh.RouteFilter_Redirect:
			status, location := filter.Redirect(&p.request.Seen, f.Redirect, p.match.Prefix, p.target.Port.Service)
			p.out.Answer = &exchange.Answer{Status: status, Flag: exchange.NoFlag, Fields: []http1.Field{{Name: "location", Value: location}}}
		case *mesh.RouteFilter_Mirror:
			p.mirror(f.Mirror)
		case *mesh.RouteFilter_Cors:
			if fields, is := filter.Preflight(&p.request.Seen, f.Cors); is {
				p.out.Answer = &exchange.Answer{Status: http.StatusOK, Flag: exchange.NoFlag, Fields: fields}
			}
			p.responses = append(p.responses, func(fields []http1.Field) []http1.Field {
				return append(fields, filter.CORSResponse(&p.request.Seen, f.Cors)...)
			})
		}
	}
	if p.out.Answer != nil {
		for _, change := range p.responses {
			p.out.Answer.Fields = change(p.out.Answer.Fields)
		}
	}
	return p.out.Answer != nil
}

func setHeaders(o *exchange.Outgoing, m *mesh.HeaderModifier) {
	o.Fields = filter.Headers(o.Fields, m)
	// The host is no field of an outgoing request.
	o.Fields = slices.DeleteFunc(o.Fields, func(f http1.Field) bool {
		if f.Name == "host" && f.Value != "" {
			o.Authority = f.Value
		}
		return f.Name == "host"
	})
}

func (p *plan) rewrite(o *exchange.Outgoing, m *mesh.URLRewrite) {
	if m.GetHostname() != "" {
		o.Authority = m.GetHostname()
	}
	if m.GetPath() != nil {
		o.Path = filter.Path(p.request.Seen.Path, m.GetPath(), p.match.Prefix) + p.request.Seen.Query
	}
}

// mirror adds a copy, for the share of requests that is to be copied. One that cannot
// be carried out takes nothing from the request.
func (p *plan) mirror(m *mesh.RequestMirror) {
	if d := m.GetDenominator(); d > 0 && rand.Uint32N(d) >= m.GetNumerator() {
		return
	}
	if service, port, err := p.backend(m.GetBackend()); err == nil {
		p.out.Mirrors = append(p.out.Mirrors, exchange.Mirror{Service: service, Port: port})
	}
}

func (p *plan) finish() {
	if len(p.requests) > 0 {
		p.out.Request = func(o *exchange.Outgoing) {
			for _, change := range p.requests {
				change(o)
			}
		}
	}
	if len(p.responses) > 0 {
		p.out.Response = func(_ int, fields []http1.Field) []http1.Field {
			for _, change := range p.responses {
				fields = change(fields)
			}
			return fields
		}
	}
	if p.out.Retries > 0 && p.out.Backoff == 0 {
		p.out.Backoff = defaultBackoff
	}
}

// defaultBackoff is what the field's proxies wait at first.
const defaultBackoff = 25 * time.Millisecond
