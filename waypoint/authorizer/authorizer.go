// Package authorizer asks providers about requests, by Envoy's protocol for external
// authorization (envoy.service.auth.v3).
//
//	question.go    a request -> what a provider is told of it
//	answer.go      what a provider says -> an Answer, or an error
//	authorizer.go  Authorizer: connections to providers, and how long one waits
//
// Invariants: what is not clearly agreement is none: an error, silence until the timeout,
// an answer that contradicts itself or asks for what no request can be; of a request's
// body nothing is told but what is given; providers are reached by the way that is given alone.
//
// What an error means for the request is for who asks.
package authorizer

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ambit-mesh/ambit/waypoint/policy"
)

const (
	// maxAnswer is how long one may be: some headers, and a page for people.
	maxAnswer = 256 << 10
	// maxProviders that connections are kept to.
	maxProviders = 256
	// idleTimeout of such a connection.
	idleTimeout = 5 * time.Minute
	// maxAsking is how many requests may wait for providers at once.
	maxAsking = 4096
)

// Config of an Authorizer. All fields are required.
type Config struct {
	// Dial connects to a port of a Service, by its key, through the mesh.
	Dial       func(ctx context.Context, service string, port uint16) (net.Conn, error)
	Registerer prometheus.Registerer
}

// Authorizer asks providers.
type Authorizer struct {
	cfg     Config
	answers *prometheus.CounterVec
	asking  chan struct{}

	mu sync.Mutex
	// Guarded by mu: connections to providers.
	conns map[endpoint]*grpc.ClientConn
}

type endpoint struct {
	service string
	port    uint16
}

// New makes an Authorizer; Close ends it.
func New(cfg Config) *Authorizer {
	a := &Authorizer{
		cfg: cfg, asking: make(chan struct{}, maxAsking), conns: map[endpoint]*grpc.ClientConn{},
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_authorization_provider_answers_total", Help: "Requests that providers were asked about, by result: agreed, denied or failed.",
		}, []string{"provider", "result"}),
	}
	cfg.Registerer.MustRegister(a.answers)
	return a
}

// Close ends all connections.
func (a *Authorizer) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, conn := range a.conns {
		conn.Close()
		delete(a.conns, key)
	}
}

// Ask a provider. An error means that it gave no answer.
func (a *Authorizer) Ask(ctx context.Context, p policy.Provider, question *auth.CheckRequest) (*Answer, error) {
	answer, err := a.ask(ctx, p, question)
	result := "failed"
	switch {
	case err == nil && answer.Agreed:
		result = "agreed"
	case err == nil:
		result = "denied"
	}
	a.answers.WithLabelValues(p.Service, result).Inc()
	if err != nil {
		return nil, fmt.Errorf("ask %s port %d: %w", p.Service, p.Port, err)
	}
	return answer, nil
}

func (a *Authorizer) ask(ctx context.Context, p policy.Provider, question *auth.CheckRequest) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	select {
	case a.asking <- struct{}{}:
		defer func() { <-a.asking }()
	default:
		return nil, fmt.Errorf("%d requests wait for providers already", maxAsking)
	}
	conn, err := a.connection(endpoint{p.Service, p.Port})
	if err != nil {
		return nil, err
	}
	// A call waits for its connection, for as long as it has: what failed before need not
	// fail now.
	said, err := auth.NewAuthorizationClient(conn).Check(ctx, question, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	return Read(said)
}

func (a *Authorizer) connection(to endpoint) (*grpc.ClientConn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if conn, ok := a.conns[to]; ok {
		return conn, nil
	}
	if len(a.conns) >= maxProviders {
		return nil, fmt.Errorf("%d providers are asked already", maxProviders)
	}
	host := to.service[strings.IndexByte(to.service, '/')+1:]
	conn, err := grpc.NewClient("passthrough:///"+host,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return a.cfg.Dial(ctx, to.service, to.port) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // inside of a tunnel
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(idleTimeout), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}, MinConnectTimeout: 5 * time.Second,
		}),
	)
	if err != nil {
		return nil, err
	}
	a.conns[to] = conn
	return conn, nil
}
