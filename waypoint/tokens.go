package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/jwt"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/policy"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/token"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// keys are those of tokens' issuers: *jwks.Store.
type keys interface {
	Keys(ctx context.Context, from jwt.Source, lacking *jwt.Keys) (*jwt.Keys, error)
	Cached(from jwt.Source) (*jwt.Keys, error)
	Missing(from jwt.Source) error
	Want(from jwt.Source)
}

// tokens verifies the tokens of requests by RequestAuthentications.
type tokens struct {
	// namespace of the waypoint.
	namespace string
	keys      keys
	logger    *slog.Logger

	mu sync.Mutex
	// Guarded by mu: what was compiled of the messages in snapshots.
	compiled map[*mesh.RequestAuthentication]*token.Authentication
}

func newTokens(namespace string, keys keys, logger *slog.Logger) *tokens {
	return &tokens{namespace: namespace, keys: keys, logger: logger, compiled: map[*mesh.RequestAuthentication]*token.Authentication{}}
}

// authenticate verifies a request's token, if it bears one, and changes what of it is
// seen and goes on. Its error is always a *conns.Failure.
func (t *tokens) authenticate(ctx context.Context, s *workload.Snapshot, to *target.Target, r *exchange.Request, began time.Time) error {
	if len(to.Binding.Authentications) == 0 && len(to.Binding.ClaimHeaders) == 0 {
		return nil
	}
	all := make([]*token.Authentication, 0, len(to.Binding.Authentications))
	for _, name := range to.Binding.Authentications {
		message, ok := s.RequestAuthentication(name)
		if !ok {
			return conns.Fail(conns.PolicyMissing, fmt.Errorf("request authentication %s applies and has not come", name))
		}
		a := t.compile(message)
		if a.Closed {
			return conns.Fail(exchange.Unauthenticated, fmt.Errorf("request authentication %s: %w", name, a.Err))
		}
		all = append(all, a)
	}
	found, err := token.Find(&r.Seen, all)
	if err != nil {
		return conns.Fail(exchange.BadRequest, err)
	}
	forged := token.Forged(all, to.Binding.ClaimHeaders)
	var proof *token.Proof
	if found != nil {
		fetch := func(from jwt.Source, lacking *jwt.Keys) (*jwt.Keys, error) { return t.keys.Keys(ctx, from, lacking) }
		if proof, err = found.Prove(all, fetch, began); err != nil {
			return conns.Fail(exchange.Unauthenticated, err)
		}
	}
	r.Proof = proof
	fields, query := token.Change(&r.Seen, forged, proof)
	r.Change(fields, query, forged)
	return nil
}

// claims are those of a request's token that one of these RequestAuthentications, by
// which counts, verifies still.
func (t *tokens) claims(s *workload.Snapshot, r *exchange.Request, counts func(name string) bool) *policy.Claims {
	if r == nil || r.Proof == nil {
		return nil
	}
	cached := func(from jwt.Source, _ *jwt.Keys) (*jwt.Keys, error) { return t.keys.Cached(from) }
	for _, name := range r.Proof.By {
		message, ok := s.RequestAuthentication(name)
		if ok && counts(name) && r.Proof.Holds(t.compile(message), cached) {
			return r.Proof.Claims
		}
	}
	return nil
}

// atEndpoint tells what counts for the policies of an endpoint: what somebody wrote who
// has a say there. Whoever leads requests there from elsewhere has none.
func (t *tokens) atEndpoint(s *workload.Snapshot, endpoint *workload.Workload) func(name string) bool {
	return func(name string) bool {
		namespace, _, _ := strings.Cut(name, "/")
		if namespace == endpoint.Namespace || namespace == t.namespace {
			return true
		}
		message, ok := s.RequestAuthentication(name)
		return ok && message.GetMeshWide()
	}
}

// bound tells what counts for the policies of what is bound.
func bound(to *target.Target) func(name string) bool {
	return func(name string) bool { return slices.Contains(to.Binding.Authentications, name) }
}

func (t *tokens) compile(message *mesh.RequestAuthentication) *token.Authentication {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a, ok := t.compiled[message]; ok {
		return a
	}
	if len(t.compiled) >= maxCompiled {
		clear(t.compiled)
	}
	a, err := token.Parse(message)
	if err != nil {
		t.logger.Warn("a request authentication is not understood as a whole: it refuses more than it says", "request_authentication", a.Name, "error", err)
	}
	t.compiled[message] = a
	return a
}

// lookEvery is how often keys that are missing are asked for again.
const lookEvery = 2 * time.Second

// run has keys fetched before the first token comes, and again when that fails or they
// are old, until ctx ends. It tells which RequestAuthentications lack some.
func (t *tokens) run(ctx context.Context, snapshot func() *workload.Snapshot, tell func(missing map[string]string)) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		now := snapshot()
		missing := map[string]string{}
		for message := range now.RequestAuthentications() {
			a := t.compile(message)
			for _, from := range a.Sources() {
				t.keys.Want(from)
				if err := t.keys.Missing(from); err != nil {
					missing[a.Name] = err.Error()
				}
			}
		}
		tell(missing)
		select {
		case <-now.Changed():
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// issuers are Services that the waypoint itself asks: those of tokens, as jwks.Mesh has
// them, and providers.
type issuers struct {
	snapshot func() *workload.Snapshot
	self     func() *workload.Workload
	upstream *upstream.Opener
}

var errPlain = errors.New("takes no tunnels, and is asked by nothing else")

// DialService connects to an endpoint of a Service.
func (i issuers) DialService(ctx context.Context, host string, port uint16, plain bool) (net.Conn, bool, error) {
	s := i.snapshot()
	service := serviceOf(s, host)
	if service == nil {
		return nil, false, nil
	}
	conn, err := i.open(ctx, s, service, port, plain)
	if err != nil {
		return nil, true, errors.New(err.Error()) // its reason is not the request's
	}
	return conn, true, nil
}

// open a connection of the waypoint's own. tunnel: in another way it is an error.
func (i issuers) open(ctx context.Context, s *workload.Snapshot, service *workload.Service, port uint16, tunnel bool) (*upstream.Conn, error) {
	return i.upstream.Open(ctx, upstream.Want{
		Snapshot: s, Service: service, Port: port, Client: netip.AddrPortFrom(i.self().Addresses[0], 0),
		Admit: func(w *workload.Workload, at netip.AddrPort) error {
			if tunnel && w.Protocol != workload.HBONE {
				return conns.Fail(conns.ConnectFailed, fmt.Errorf("%s %w", w.UID, errPlain))
			}
			return nil
		},
	})
}

// serviceOf finds a Service by its whole name, or without the cluster's domain.
func serviceOf(s *workload.Snapshot, host string) *workload.Service {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	for _, service := range s.Services() {
		if service.Hostname == host || strings.HasSuffix(host, ".svc") && strings.HasPrefix(service.Hostname, host+".") {
			return service
		}
	}
	return nil
}
