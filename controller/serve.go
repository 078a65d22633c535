package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/report"
	"github.com/ambit-mesh/ambit/internal/quota"
)

const (
	// A data plane that lost its power says no goodbye. Until it is found dead
	// it counts as connected, and holds withdrawals up.
	pingInterval = 15 * time.Second
	pingTimeout  = 10 * time.Second
	// clientPingInterval is what clients may ping us at most; ours do every 10 s.
	clientPingInterval = 5 * time.Second
	// handshakeTimeout bounds a connection that says nothing.
	handshakeTimeout = 10 * time.Second
	// streamsPerConnection: a data plane has two, and certificates on top.
	streamsPerConnection = 256
	// connectionsPerAddress is for a data plane with several connections, and for
	// some others behind the same address.
	connectionsPerAddress = 64
	// maxHeaderBytes is several times a token and what comes with it.
	maxHeaderBytes = 64 << 10
	// idleTimeout ends connections that nobody calls on.
	idleTimeout = 15 * time.Minute
	// drainTimeout is what calls have to end after the last signal to go on.
	drainTimeout = 5 * time.Second
)

// serve data planes until ctx ends, then let calls end until force does.
func (p *parts) serve(ctx, force context.Context, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve data planes: %w", err)
	}
	refused := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ambit_grpc_connections_refused_total", Help: "Connections of addresses that have as many open as they may.",
	})
	p.registry.MustRegister(refused)
	listener = quota.NewListener(listener, connectionsPerAddress, func(netip.Addr) { refused.Inc() })
	server := p.newServer()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	p.logger.Info("serving data planes", "address", listener.Addr().String())

	select {
	case err := <-ended:
		return fmt.Errorf("serve data planes: %w", err)
	case <-ctx.Done():
	}
	p.push.Close()
	drained := make(chan struct{})
	go func() { server.GracefulStop(); close(drained) }()
	select {
	case <-drained:
	case <-force.Done():
	case <-time.After(drainTimeout):
	}
	server.Stop()
	<-drained
	<-ended
	return nil
}

// newServer has the three services on one port, over TLS with our own certificate.
func (p *parts) newServer() *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion:     tls.VersionTLS13,
			GetCertificate: p.authority.GetCertificate,
		})),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(push.MaxRequestBytes),
		grpc.MaxConcurrentStreams(streamsPerConnection),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingInterval, Timeout: pingTimeout, MaxConnectionIdle: idleTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: clientPingInterval, PermitWithoutStream: true,
		}),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(server, p.push)
	ca.NewServer(ca.ServerConfig{
		Authority: p.authority, Authenticator: p.authenticator, Pods: p.pods,
		SystemNamespace: p.settings.namespace, Logger: p.logger, Registerer: p.registry,
	}).Register(server)
	reportapi.RegisterReportServiceServer(server, report.NewServer(report.ServerConfig{
		Registry: p.reports, Authenticator: p.authenticator, Pods: p.pods, Leading: p.leadership.held.Load,
		SystemNamespace: p.settings.namespace, Logger: p.logger, Registerer: p.registry,
	}))
	return server
}
