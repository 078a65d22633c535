package main

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/session"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// router goes where the routes attached to what was addressed say, and to that itself
// where there are none.
type router struct {
	logger *slog.Logger

	mu sync.Mutex
	// Guarded by mu: what was compiled of the bindings in snapshots.
	compiled map[*workload.Binding]*route.Router
}

func newRouter(logger *slog.Logger) *router {
	return &router{logger: logger, compiled: map[*workload.Binding]*route.Router{}}
}

// Route is exchange.Router's.
func (r *router) Route(s *workload.Snapshot, t *target.Target, c target.Client, q *exchange.Request) exchange.Plan {
	if len(t.Routes()) == 0 {
		return exchange.Plan{Service: t.Service, Port: t.Port}
	}
	m := r.compile(t.Binding).Match(&q.Seen, c.Identity.Namespace, t.Port.Service)
	if !m.Attached {
		return exchange.Plan{Service: t.Service, Port: t.Port}
	}
	if m.Rule == nil {
		return answer(exchange.Plan{}, http.StatusNotFound, exchange.NoRoute, "no rule of the routes matches")
	}
	p := exchange.Plan{
		Route: m.Rule.Route, Rule: m.Rule.Name, Timeout: m.Rule.RequestTimeout, AttemptTimeout: m.Rule.BackendTimeout,
		Retries: m.Rule.Retries, RetryOn: m.Rule.RetryOn, Backoff: m.Rule.Backoff,
	}
	for _, invalid := range []string{m.Invalid, m.Rule.Invalid} {
		if invalid != "" {
			return answer(p, http.StatusInternalServerError, exchange.Invalid, invalid)
		}
	}
	return carry(s, q, m, p)
}

// carry has the filters do their work, and chooses a backend.
func carry(s *workload.Snapshot, q *exchange.Request, m route.Match, p exchange.Plan) exchange.Plan {
	head := filter.Head{Authority: q.Authority, Path: q.Path, Fields: q.Fields}
	if a := m.Rule.Filters.Request(&q.Seen, m.By, &head); a != nil {
		p.Answer = &exchange.Answer{Status: a.Status, Flag: exchange.NoFlag, Fields: a.Fields}
		return p
	}
	b, token := choose(q, m.Rule)
	if b == nil {
		return answer(p, http.StatusInternalServerError, exchange.Invalid, "the rule has no backend that gets requests")
	}
	if b.Invalid != "" {
		return answer(p, http.StatusInternalServerError, exchange.Invalid, b.Invalid)
	}
	if a := b.Filters.Request(&q.Seen, m.By, &head); a != nil {
		p.Answer = &exchange.Answer{Status: a.Status, Flag: exchange.NoFlag, Fields: a.Fields}
		return p
	}
	var ok bool
	if p.Service, p.Port, ok = backend(s, b.Service, b.Port); !ok {
		return answer(p, http.StatusInternalServerError, exchange.Invalid, fmt.Sprintf("backend %s has no port %d, or is not known", b.Service, b.Port))
	}
	if m.Rule.Session != nil {
		p.Session = sessionOf(s, m.Rule, b, token)
	}
	if m.Rule.Filters != nil || b.Filters != nil {
		p.Request = func(o *exchange.Outgoing) {
			o.Authority, o.Path, o.Fields = head.Authority, head.Path, slices.Clone(head.Fields)
		}
	}
	for _, chain := range []*filter.Chain{m.Rule.Filters, b.Filters} {
		if chain != nil {
			p.Mirrors = appendMirrors(p.Mirrors, s, chain.Mirrors)
		}
	}
	if m.Rule.Filters.Changes() || b.Filters.Changes() {
		seen := q.Seen
		p.Response = func(_ int, fields []http1.Field) []http1.Field {
			return m.Rule.Filters.Response(&seen, b.Filters.Response(&seen, fields))
		}
	}
	return p
}

// choose the backend of the request's session or, if it has none, one by the weights.
func choose(q *exchange.Request, rule *route.Rule) (*route.Backend, session.Token) {
	if rule.Session != nil {
		if token, ok := rule.Session.Read(q.Fields, time.Now()); ok {
			if b := rule.OfSession(token); b != nil {
				return b, token
			}
		}
	}
	return rule.Pick(rand.Uint64N), session.Token{}
}

// sessionOf a request that goes to a backend.
func sessionOf(s *workload.Snapshot, rule *route.Rule, b *route.Backend, token session.Token) *exchange.Session {
	out := &exchange.Session{Begin: func(w *workload.Workload, fields []http1.Field) []http1.Field {
		now := time.Now()
		return rule.Session.Write(slices.Clip(fields), rule.Session.Begin(b.Service, b.Port, w.UID, now), now)
	}}
	if token != (session.Token{}) {
		for _, w := range s.Endpoints(b.Service) {
			if token.IsEndpoint(w.UID) {
				out.Endpoint = w
			}
		}
	}
	return out
}

func answer(p exchange.Plan, status int, flag exchange.Flag, detail string) exchange.Plan {
	p.Answer = &exchange.Answer{Status: status, Flag: flag, Detail: detail}
	return p
}

func backend(s *workload.Snapshot, key string, number uint16) (*workload.Service, workload.Port, bool) {
	service, ok := s.Service(key)
	if !ok {
		return nil, workload.Port{}, false
	}
	port, ok := service.Port(number)
	return service, port, ok
}

// appendMirrors draws who gets a copy; a backend that is not known gets none.
func appendMirrors(to []exchange.Mirror, s *workload.Snapshot, mirrors []filter.Mirror) []exchange.Mirror {
	for _, m := range mirrors {
		service, port, ok := backend(s, m.Service, m.Port)
		if ok && rand.Uint32N(m.Denominator) < m.Numerator {
			to = append(to, exchange.Mirror{Service: service, Port: port})
		}
	}
	return to
}

func (r *router) compile(b *workload.Binding) *route.Router {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.compiled[b]; ok {
		return c
	}
	if len(r.compiled) >= maxCompiled {
		clear(r.compiled)
	}
	c := route.Compile(b.Routes)
	for _, problem := range c.Problems {
		r.logger.Warn("of a route something cannot be carried out: that is answered with 500", "target", b.Key, "error", problem)
	}
	r.compiled[b] = c
	return c
}
