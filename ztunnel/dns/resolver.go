package dns

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/net/dns/dnsmessage"
)

// Resolver asks the node's resolvers, for all pods.
type Resolver struct {
	// Fixed after NewResolver.
	servers func() []netip.AddrPort
	metrics *Metrics
	slots   chan struct{}
	ask     func(ctx context.Context, q question, server netip.AddrPort, stream bool) ([]byte, error)
}

// NewResolver makes a Resolver. servers are asked in their order, the next one where one fails.
func NewResolver(servers func() []netip.AddrPort, metrics *Metrics) *Resolver {
	return &Resolver{servers: servers, metrics: metrics, slots: make(chan struct{}, maxExchanges), ask: exchange}
}

// Servers are those that are asked.
func (r *Resolver) Servers() []netip.AddrPort { return slices.Clone(r.servers()) }

var (
	errNoServers = errors.New("the node has no resolvers")
	errNoAnswer  = errors.New("no resolver answered in time")
)

// resolve asks servers until one answers: each in turn, and all of them once more.
func (r *Resolver) resolve(ctx context.Context, q question, servers []netip.AddrPort, stream bool) ([]byte, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, errOverloaded
	}
	if len(servers) == 0 {
		return nil, errNoServers
	}
	var failed []byte
	for range 2 {
		for _, server := range servers {
			answer, err := r.try(ctx, q, server, stream)
			switch {
			case ctx.Err() != nil:
				return nil, errNoAnswer
			case err == nil && !failure(answer):
				return answer, nil
			case err == nil:
				failed = answer
			}
		}
		if failed != nil {
			return failed, nil // all that were there say so
		}
	}
	return nil, errNoAnswer
}

func (r *Resolver) try(ctx context.Context, q question, server netip.AddrPort, stream bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	answer, err := r.ask(ctx, q, server, stream)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		r.metrics.upstream.WithLabelValues("timeout").Inc()
	case errors.Is(err, errNotAnAnswer):
		r.metrics.upstream.WithLabelValues("malformed").Inc()
	case err != nil:
		r.metrics.upstream.WithLabelValues("unreachable").Inc()
	case failure(answer):
		r.metrics.upstream.WithLabelValues("refused").Inc()
	}
	return answer, err
}

// failure tells that a server did not answer the question, where another one might.
func failure(answer []byte) bool {
	switch rcode(answer) {
	case dnsmessage.RCodeServerFailure, dnsmessage.RCodeNotImplemented, dnsmessage.RCodeRefused:
		return true
	}
	return false
}
