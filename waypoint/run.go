package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/controlplane"
	"github.com/ambit-mesh/ambit/internal/daemon"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/authorizer"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/jwks"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// Addresses of the component's own servers. The first is for the pod alone.
const (
	adminAddress     = "127.0.0.1:15000"
	metricsAddress   = ":15020"
	readinessAddress = ":15021"
)

const (
	// tunnelPort is where clients' tunnels come in.
	tunnelPort = 15008
	// metricsPort is metricsAddress's.
	metricsPort = 15020
	// certificateTTL is what certificates are asked for.
	certificateTTL = 24 * time.Hour
)

const (
	// killMargin is left of Kubernetes' grace for the end itself.
	killMargin = 5 * time.Second
	// farewell is how long, after it said that it is not ready, the waypoint still
	// takes new tunnels: what the news takes to reach every node.
	farewell = 2 * time.Second
)

// waypoint is all parts of the process, composed.
type waypoint struct {
	settings settings
	logger   *slog.Logger
	access   *slog.Logger // of requests
	identity spiffe.ID
	// unpublished is the waypoint's own pod until the controller has said what it is.
	unpublished *workload.Workload

	admin     *daemon.Admin
	metrics   *daemon.Metrics
	readiness *daemon.Readiness

	store      *workload.Store
	roots      *roots
	feed       *feed.Client
	certs      *certs.Store
	conns      *conns.Registry
	endpoints  *endpoints.Registry
	upstream   *upstream.Opener
	keys       *jwks.Store
	tokens     *tokens
	authorizer *authorizer.Authorizer
	policies   *policies
	traces     *traces
	engine     *exchange.Engine
	server     *server.Server
}

// run composes everything and runs it until running ends, then drains; force ends
// that early. Lines about requests go to access.
func run(running, force context.Context, s settings, logger, access *slog.Logger, level *slog.LevelVar) error {
	w := &waypoint{
		settings: s, logger: logger, access: access,
		admin: daemon.NewAdmin(logger, level), metrics: daemon.NewMetrics(), readiness: daemon.NewReadiness(),
		store: workload.NewStore(),
	}
	var err error
	// Its pods' service account has the Gateway's name.
	if w.identity, err = spiffe.New(s.TrustDomain, s.PodNamespace, s.Gateway); err != nil {
		return fmt.Errorf("POD_NAMESPACE, GATEWAY_NAME: %w", err)
	}
	w.unpublished = &workload.Workload{
		UID: workload.PodUID(s.ClusterID, s.PodNamespace, s.PodName), Name: s.PodName, Namespace: s.PodNamespace, Addresses: []netip.Addr{s.PodIP},
		ClusterID: s.ClusterID, Node: s.NodeName, Protocol: workload.HBONE, NativeTunnel: true, Identity: w.identity, Healthy: true, Kind: "pod", Owner: s.PodName,
	}
	if err := w.composeController(); err != nil {
		return err
	}
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.PodIP, tunnelPort)))
	if err != nil {
		return fmt.Errorf("listen for tunnels: %w", err)
	}
	defer listener.Close()
	if err := w.composeTraffic(listener); err != nil {
		return err
	}
	w.dumps()
	logger.Info("waypoint starts", "version", daemon.Version, "gateway", s.PodNamespace+"/"+s.Gateway, "identity", w.identity, "controller", s.Controller)
	return w.run(running, force)
}

// composeController: what comes from the controller.
func (w *waypoint) composeController() error {
	s := w.settings
	w.roots = &roots{path: s.RootPath, store: w.store, logger: w.logger}
	token := controlplane.TokenFile(s.TokenPath)
	var err error
	w.feed, err = feed.New(feed.Config{
		Address: s.Controller,
		Node: feed.Node{
			Role: "waypoint", PodName: s.PodName, Namespace: s.PodNamespace, NodeName: s.NodeName, ClusterID: s.ClusterID, IPs: []netip.Addr{s.PodIP},
		},
		Waypoint: workload.WaypointAlias(s.PodNamespace, s.Gateway),
		Roots:    w.roots.pool, Revoked: w.roots.revoked, Token: token, Store: w.store, Logger: w.logger, Registerer: w.metrics.Registry,
	})
	if err != nil {
		return err
	}
	conn, err := controlplane.Dial(s.Controller, s.ClusterID, w.roots.pool, w.roots.revoked, token)
	if err != nil {
		return err
	}
	w.certs = certs.New(certs.Config{
		Fetch: certs.FetchFrom(conn, certificateTTL), Bundle: w.roots.bundle, Retiring: w.roots.retiring, Revoked: w.roots.revoked,
		Logger: w.logger, Registerer: w.metrics.Registry,
	})
	w.certs.Want(w.identity)
	return nil
}

// composeTraffic: what happens to connections.
func (w *waypoint) composeTraffic(listener *net.TCPListener) error {
	w.conns = conns.New(conns.Config{Logger: w.logger, Registerer: w.metrics.Registry})
	w.endpoints = endpoints.New(endpoints.Config{Logger: w.logger, Registerer: w.metrics.Registry})
	w.upstream = upstream.New(upstream.Config{
		Self: w.self, TLS: w.clientTLS, Trust: w.certs, Endpoints: w.endpoints, PoolMetrics: pool.NewMetrics(w.metrics.Registry), Logger: w.logger,
	})
	services := issuers{snapshot: w.store.Snapshot, self: w.self, upstream: w.upstream}
	w.keys = jwks.New(jwks.Config{
		Mesh: services, Logger: w.logger, Registerer: w.metrics.Registry,
	})
	w.tokens = newTokens(w.settings.PodNamespace, w.keys, w.logger)
	w.authorizer = authorizer.New(authorizer.Config{Dial: services.DialProvider, Registerer: w.metrics.Registry})
	w.policies = newPolicies(func() spiffe.ID { return w.identity }, w.tokens, w.authorizer, w.logger)
	var err error
	mesh := issuers{snapshot: w.store.Snapshot, self: w.self, upstream: w.upstream}
	if w.traces, err = newTraces(w.settings, mesh, w.logger); err != nil {
		return err
	}
	w.engine, err = exchange.New(exchange.Config{
		Snapshot: w.store.Snapshot, Self: w.self, Policies: w.policies, Router: newRouter(w.logger), Upstream: w.upstream,
		Telemetry: exchange.NewTelemetry(w.access, w.metrics.Registry), Tracer: w.traces.tracer(), Logger: w.logger,
	})
	if err != nil {
		return err
	}
	w.server = server.New(server.Config{
		Listener: listener, TLS: w.certs.ServerConfig(w.identity), Trust: w.certs, Quotas: accept.NewQuotas(w.settings.Limits),
		Snapshot: w.store.Snapshot, Self: w.self, Policies: w.policies, Upstream: w.upstream, HTTP: w.engine, Conns: w.conns, Logger: w.logger,
		Metrics:      metricsPort,
		DrainTimeout: max(time.Second, w.settings.Grace-killMargin-farewell),
	})
	return nil
}

// run starts what was composed, waits for the end, and drains.
func (w *waypoint) run(running, force context.Context) error {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(running))
	defer cancel(nil)
	serving, drain := context.WithCancel(ctx)
	defer drain()
	var group, traffic sync.WaitGroup
	part := func(group *sync.WaitGroup, ctx context.Context, name string, run func(context.Context) error) {
		group.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	w.gates(ctx, &group)
	part(&group, ctx, "admin", func(ctx context.Context) error { return w.admin.Run(ctx, adminAddress) })
	part(&group, ctx, "metrics", func(ctx context.Context) error { return w.metrics.Run(ctx, metricsAddress) })
	part(&group, ctx, "readiness", func(ctx context.Context) error { return w.readiness.Run(ctx, readinessAddress) })
	part(&group, ctx, "feed", w.feed.Run)
	part(&group, ctx, "certificates", w.certs.Run)
	group.Go(func() { w.followBundle(ctx) })
	part(&group, ctx, "requests", w.engine.Run)
	part(&group, ctx, "keys", w.keys.Run)
	part(&group, ctx, "tokens", func(ctx context.Context) error {
		return w.tokens.run(ctx, w.store.Snapshot, func(missing map[string]string) { w.feed.Trouble(workload.RequestAuthenticationType, missing) })
	})
	part(&traffic, serving, "server", w.server.Run)

	select {
	case <-running.Done():
		w.leave(ctx, force)
	case <-ctx.Done():
	}
	drain()
	group.Go(func() { w.engine.Drain(ctx) }) // which may last as long as they do
	stop := context.AfterFunc(force, w.server.Cut)
	defer stop()
	traffic.Wait()
	cause := context.Cause(ctx)
	cancel(nil)
	group.Wait()
	w.traces.close()
	w.authorizer.Close()
	over, end := context.WithCancel(context.Background())
	end() // nobody is left to wait for
	w.upstream.Close(over)
	return cause
}

// leave says that the waypoint is not to be chosen any more, and gives that time to
// get about.
func (w *waypoint) leave(ctx, force context.Context) {
	w.logger.Info("told to end: not ready from here on", "connections", len(w.conns.Live()))
	w.readiness.Gate("ending")
	select {
	case <-time.After(farewell):
	case <-force.Done():
	case <-ctx.Done():
	}
}

// gates opens readiness as its conditions come true.
func (w *waypoint) gates(ctx context.Context, group *sync.WaitGroup) {
	synced := w.readiness.Gate("configuration synced")
	group.Go(func() {
		select {
		case <-w.feed.Synced():
			synced()
		case <-ctx.Done():
		}
	})
	certified := w.readiness.Gate("certificate held")
	group.Go(func() {
		for ctx.Err() == nil {
			if _, err := w.certs.Get(ctx, w.identity); err == nil {
				certified()
				return
			}
			select {
			case <-time.After(gatePoll):
			case <-ctx.Done():
			}
		}
	})
}

const gatePoll = 100 * time.Millisecond

// followBundle has certificates and live tunnels judged anew when the trust bundle, or
// what is revoked, changes.
func (w *waypoint) followBundle(ctx context.Context) {
	before := w.store.Snapshot()
	for {
		select {
		case <-ctx.Done():
			return
		case <-before.Changed():
		}
		now := w.store.Snapshot()
		same := slices.EqualFunc(before.TrustBundle(), now.TrustBundle(), func(x, y *x509.Certificate) bool { return x.Equal(y) })
		if !same || !slices.Equal(before.RetiringRoots(), now.RetiringRoots()) || before.Revoked() != now.Revoked() {
			w.certs.BundleChanged()
		}
		before = now
	}
}

// self is the waypoint's own pod: what the controller says of it, once it does.
func (w *waypoint) self() *workload.Workload {
	published, ok := w.store.Snapshot().WorkloadByUID(w.unpublished.UID)
	if ok && published.Identity == w.identity && slices.Contains(published.Addresses, w.settings.PodIP) {
		return published
	}
	return w.unpublished
}

func (w *waypoint) clientTLS(expected ...spiffe.ID) *tls.Config {
	return w.certs.ClientConfig(w.identity, expected...)
}
