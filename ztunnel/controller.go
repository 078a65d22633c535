package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/ambit-mesh/ambit/internal/revocation"
)

// dialController prepares the connection for certificates and reports. The
// roots are those of the moment at which it connects.
func dialController(address, clusterID string, roots func() *x509.CertPool, revoked func() *revocation.List, token func() (string, error)) (*grpc.ClientConn, error) {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("read controller address: %w", err)
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13,
			ServerName: name,
			// Verified below, against roots that may change between connections.
			InsecureSkipVerify: true,
			VerifyConnection:   func(state tls.ConnectionState) error { return verifyController(state, name, roots(), revoked()) },
		})),
		grpc.WithPerRPCCredentials(bearer{token: token, clusterID: clusterID}),
		// A controller that comes back is noticed within seconds: certificates wait for it.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("dial controller: %w", err)
	}
	return conn, nil
}

func verifyController(state tls.ConnectionState, name string, roots *x509.CertPool, revoked *revocation.List) error {
	if roots == nil {
		return errors.New("verify controller: no root certificates known yet")
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("verify controller: it has no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		intermediates.AddCert(certificate)
	}
	chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: intermediates})
	if err == nil {
		err = revoked.Check(chains)
	}
	if err != nil {
		return fmt.Errorf("verify controller: %w", err)
	}
	return nil
}

// bearer proves to the controller who asks.
type bearer struct {
	token     func() (string, error)
	clusterID string
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b.token()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token, "clusterid": b.clusterID}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// tokenFile reads a token that Kubernetes renews, anew each time.
func tokenFile(path string) func() (string, error) {
	return func() (string, error) {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		return strings.TrimSpace(string(content)), nil
	}
}
