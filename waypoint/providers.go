package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/authorizer"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/policy"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// providers decide about requests: *authorizer.Authorizer.
type providers interface {
	Ask(ctx context.Context, p policy.Provider, question *auth.CheckRequest) (*authorizer.Answer, error)
}

// approved tells whether the provider of a policy, as it is in a snapshot, has agreed. A
// policy that has changed has to be asked about anew.
func approved(s *workload.Snapshot, r *exchange.Request) func(*policy.Policy) bool {
	return func(p *policy.Policy) bool {
		a, ok := r.Approved(p.Name)
		if !ok {
			return false
		}
		then, known := a.Policy.(*mesh.RequestPolicy)
		now, there := s.RequestPolicy(p.Name)
		return known && there && (then == now || proto.Equal(then, now))
	}
}

// Ask is exchange.Policies'.
func (p *policies) Ask(ctx context.Context, s *workload.Snapshot, t *target.Target, c target.Client, r *exchange.Request, endpoint *workload.Workload, at netip.AddrPort) error {
	of := subject(c, &r.Seen, at)
	of.Approved, of.Claims = approved(s, r), p.tokens.claims(s, r, bound(t))
	if err := p.ask(ctx, s, t, c, r, t.Binding.Policies, of); err != nil || endpoint == nil {
		return err
	}
	of.Claims = p.tokens.claims(s, r, p.tokens.atEndpoint(s, endpoint))
	return p.ask(ctx, s, t, c, r, endpoint.WaypointPolicies, of)
}

// ask those providers whose word is all that is missing.
func (p *policies) ask(ctx context.Context, s *workload.Snapshot, t *target.Target, c target.Client, r *exchange.Request, names []string, of *policy.Subject) error {
	d, err := p.decide(s, names, of)
	if err != nil || d.Reason != policy.NotAsked {
		return err // whoever judges says so
	}
	question := authorizer.Question(&r.Seen, r.Version, r.Length(), authorizer.Peer{Address: c.Addr, Identity: c.Identity},
		authorizer.Peer{Address: t.Address, Identity: p.identity()}, time.Now())
	for _, one := range d.Ask {
		answer, err := p.providers.Ask(ctx, one.Provider, question)
		switch {
		case err != nil && one.Provider.FailOpen && ctx.Err() == nil:
			p.logger.Warn("a provider could not be asked, and its policy lets requests pass then", "policy", one.Name, "error", err)
			answer = &authorizer.Answer{Agreed: true}
		case err != nil:
			return conns.Fail(exchange.ProviderDenied, fmt.Errorf("policy %s: %w", one.Name, err))
		case !answer.Agreed:
			return conns.Fail(exchange.ProviderDenied, &exchange.Refusal{
				Status: answer.Status, Fields: answer.Fields, Body: answer.Body,
				Why: fmt.Sprintf("policy %s: the provider %s refuses it", one.Name, one.Provider.Service),
			})
		}
		message, _ := s.RequestPolicy(one.Name)
		approval := exchange.Approval{Policy: message}
		if !answer.Request.None() {
			approval.Request = func(f []http1.Field) []http1.Field { return answer.Request.Apply(f) }
		}
		if !answer.Response.None() {
			approval.Response = func(f []http1.Field) []http1.Field { return answer.Response.Apply(f) }
		}
		r.Approve(one.Name, approval)
	}
	return nil
}

// DialProvider connects to a port of a Service, by tunnel.
func (i issuers) DialProvider(ctx context.Context, service string, port uint16) (net.Conn, error) {
	s := i.snapshot()
	found, ok := s.Service(service)
	if !ok {
		return nil, fmt.Errorf("Service %s is not known", service)
	}
	conn, err := i.open(ctx, s, found, port, true)
	if err != nil {
		return nil, errors.New(err.Error())
	}
	return conn, nil
}
