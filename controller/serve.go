package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	caapi "github.com/ambit-mesh/ambit/api/ca"
	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/report"
)

const (
	// A data plane that lost its power says no goodbye. Until it is found dead
	// it counts as connected, and holds withdrawals up.
	pingInterval = 15 * time.Second
	pingTimeout  = 10 * time.Second
	// clientPingInterval is what clients may ping us at most; ours do every 30 s.
	clientPingInterval = 5 * time.Second
	// handshakeTimeout bounds a connection that says nothing.
	handshakeTimeout = 10 * time.Second
	// streamsPerConnection: a data plane has two, and certificates on top.
	streamsPerConnection = 256
	// drainTimeout is what calls have to end after the last signal to go on.
	drainTimeout = 5 * time.Second
)

// serve data planes until ctx ends, then let calls end until force does.
func (p *parts) serve(ctx, force context.Context, address string, serving func()) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve data planes: %w", err)
	}
	server := p.newServer()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	p.logger.Info("serving data planes", "address", listener.Addr().String())
	serving()

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
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingInterval, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: clientPingInterval, PermitWithoutStream: true,
		}),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(server, p.push)
	caapi.RegisterIstioCertificateServiceServer(server, ca.NewServer(ca.ServerConfig{
		Authority: p.authority, Authenticator: p.authenticator, Pods: p.pods,
		SystemNamespace: p.settings.namespace, Logger: p.logger, Registerer: p.registry,
	}))
	reportapi.RegisterReportServiceServer(server, report.NewServer(report.ServerConfig{
		Registry: p.reports, Authenticator: p.authenticator, Pods: p.pods, Leading: p.leadership.held.Load,
		SystemNamespace: p.settings.namespace, Logger: p.logger, Registerer: p.registry,
	}))
	return server
}
