package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/policy"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// policies decides by RequestPolicies.
type policies struct {
	identity  func() spiffe.ID // the waypoint's own
	tokens    *tokens
	providers providers
	logger    *slog.Logger

	mu sync.Mutex
	// Guarded by mu: what was compiled of the messages in snapshots.
	compiled map[*mesh.RequestPolicy]*policy.Policy
}

// maxCompiled bounds what is kept of snapshots that are over.
const maxCompiled = 4096

func newPolicies(identity func() spiffe.ID, tokens *tokens, providers providers, logger *slog.Logger) *policies {
	return &policies{identity: identity, tokens: tokens, providers: providers, logger: logger, compiled: map[*mesh.RequestPolicy]*policy.Policy{}}
}

// Connection is server.Policies'.
func (p *policies) Connection(s *workload.Snapshot, t *target.Target, c target.Client, endpoint *workload.Workload, at netip.AddrPort) error {
	return p.both(s, t, subject(c, nil, at), nil, endpoint)
}

// Authenticate is exchange.Policies'.
func (p *policies) Authenticate(ctx context.Context, s *workload.Snapshot, t *target.Target, r *exchange.Request, began time.Time) error {
	return p.tokens.authenticate(ctx, s, t, r, began)
}

// Request is exchange.Policies'.
func (p *policies) Request(s *workload.Snapshot, t *target.Target, c target.Client, r *exchange.Request, endpoint *workload.Workload, at netip.AddrPort) error {
	if endpoint == nil {
		of := subject(c, &r.Seen, netip.AddrPort{})
		of.Approved = approved(s, r)
		of.Claims = p.tokens.claims(s, r, bound(t))
		return p.judge(s, t.Binding.Policies, of)
	}
	of := subject(c, &r.Seen, at)
	of.Approved = approved(s, r)
	return p.both(s, t, of, r, endpoint)
}

func subject(c target.Client, r *request.Request, at netip.AddrPort) *policy.Subject {
	return &policy.Subject{Request: r, Identity: c.Identity, Client: c.Addr.Addr(), Endpoint: at}
}

// both asks those of what is bound once more: some of them depend on the endpoint.
func (p *policies) both(s *workload.Snapshot, t *target.Target, subject *policy.Subject, r *exchange.Request, endpoint *workload.Workload) error {
	subject.Claims = p.tokens.claims(s, r, bound(t))
	if err := p.judge(s, t.Binding.Policies, subject); err != nil {
		return err
	}
	names, err := ofEndpoint(s, endpoint)
	if err != nil {
		return err
	}
	subject.Claims = p.tokens.claims(s, r, p.tokens.atEndpoint(s, endpoint))
	return p.judge(s, names, subject)
}

// ofEndpoint names the policies of an endpoint, which nobody knows where what was said
// last of it could not be read.
func ofEndpoint(s *workload.Snapshot, endpoint *workload.Workload) ([]string, error) {
	if s.Unreadable(endpoint.UID) {
		return nil, conns.Fail(conns.PolicyMissing, fmt.Errorf("what was said last of workload %s could not be read, so that nobody knows which policies apply", endpoint.UID))
	}
	return endpoint.WaypointPolicies, nil
}

func (p *policies) decide(s *workload.Snapshot, names []string, subject *policy.Subject) (policy.Decision, error) {
	apply := make([]*policy.Policy, 0, len(names))
	for _, name := range names {
		message, ok := s.RequestPolicy(name)
		if !ok {
			return policy.Decision{}, conns.Fail(conns.PolicyMissing, fmt.Errorf("policy %s applies and has not come", name))
		}
		apply = append(apply, p.compile(message))
	}
	return policy.Decide(subject, apply), nil
}

func (p *policies) judge(s *workload.Snapshot, names []string, subject *policy.Subject) error {
	if len(names) == 0 {
		return nil
	}
	d, err := p.decide(s, names, subject)
	if err != nil {
		return err
	}
	if d.WouldDeny != nil && d.Allowed && subject.Endpoint.IsValid() { // once a request
		p.logger.Info("a dry run would have denied", "policy", d.WouldDeny.Name, "client", subject.Identity.String(), "addr", subject.Client.String())
	}
	switch d.Reason {
	case policy.NoPolicy, policy.Allowed:
		return nil
	case policy.NotAsked:
		return conns.Fail(exchange.NotAsked, fmt.Errorf("policy %s has its provider decide, who has not been asked", d.Policy.Name))
	case policy.Denied:
		return conns.Fail(conns.PolicyDenied, fmt.Errorf("policy %s denies it", d.Policy.Name))
	}
	return conns.Fail(conns.PolicyDenied, fmt.Errorf("no policy allows it, %s does not", d.Policy.Name))
}

func (p *policies) compile(message *mesh.RequestPolicy) *policy.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.compiled[message]; ok {
		return c
	}
	if len(p.compiled) >= maxCompiled {
		clear(p.compiled)
	}
	c, err := policy.Parse(message)
	if err != nil {
		p.logger.Warn("a policy is not understood as a whole: it denies more than it says", "policy", c.Name, "error", err)
	}
	p.compiled[message] = c
	return c
}
