package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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
	names, err := ofEndpoint(s, endpoint)
	if err != nil {
		return err
	}
	of.Claims = p.tokens.claims(s, r, p.tokens.atEndpoint(s, endpoint))
	return p.ask(ctx, s, t, c, r, names, of)
}

// ask those providers whose word is all that is missing.
func (p *policies) ask(ctx context.Context, s *workload.Snapshot, t *target.Target, c target.Client, r *exchange.Request, names []string, of *policy.Subject) error {
	d, err := p.decide(s, names, of)
	if err != nil || d.Reason != policy.NotAsked {
		return err // whoever judges says so
	}
	for _, one := range d.Ask {
		body, err := readAhead(ctx, r, one)
		if err != nil {
			return conns.Fail(exchange.ProviderDenied, err)
		}
		client := authorizer.Peer{Address: c.Addr, Identity: c.Identity}
		if one.Provider.PeerCertificate {
			client.Certificate = c.Certificate
		}
		question := authorizer.Question(&r.Seen, r.Version, r.Length(), body, client, authorizer.Peer{Address: t.Address, Identity: p.identity()},
			one.Provider.ContextExtensions, time.Now())
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

// aheadTimeout is what a client may take to send what its provider is told of the body.
const aheadTimeout = 10 * time.Second

// readAhead is what the provider of a policy is told of the request's body; nil for
// nothing. A body that cannot be told is refused, whatever happens without a provider.
func readAhead(ctx context.Context, r *exchange.Request, p *policy.Policy) (*authorizer.Body, error) {
	if p.Provider.MaxBody == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, aheadTimeout)
	defer cancel()
	begin, whole, err := r.ReadAhead(ctx, p.Provider.MaxBody)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, &exchange.Refusal{Status: http.StatusRequestTimeout, Why: fmt.Sprintf("policy %s: the body that its provider is to be told of has not come: %v", p.Name, err)}
	case err != nil:
		return nil, &exchange.Refusal{Status: http.StatusBadRequest, Why: fmt.Sprintf("policy %s: the body that its provider is to be told of cannot be read: %v", p.Name, err)}
	case !whole && !p.Provider.PartialBody:
		return nil, &exchange.Refusal{Status: http.StatusRequestEntityTooLarge, Why: fmt.Sprintf("policy %s: the body is longer than the %d bytes that its provider is told of", p.Name, p.Provider.MaxBody)}
	}
	return &authorizer.Body{Bytes: begin, Partial: !whole}, nil
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
