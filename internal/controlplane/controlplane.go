// Package controlplane connects to the controller for what is asked of it by call:
// certificates and reports.
//
// Invariants: nothing is said to who is not proven to be the controller, by the
// roots and by what is revoked at that moment; a token is read anew for every call.
//
// Following the configuration is feed's job, which has a connection of its own.
package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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

// Dial prepares the connection for certificates and reports. The
// roots are those of the moment at which it connects.
func Dial(address, clusterID string, roots func() *x509.CertPool, revoked func() *revocation.List, token func() (string, error)) (*grpc.ClientConn, error) {
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
			VerifyConnection:   func(state tls.ConnectionState) error { return verify(state, name, roots(), revoked()) },
		})),
		grpc.WithPerRPCCredentials(bearer{token: token, clusterID: clusterID}),
		// A controller that comes back is noticed within seconds: certificates wait for it.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("dial controller: %w", err)
	}
	return conn, nil
}

func verify(state tls.ConnectionState, name string, roots *x509.CertPool, revoked *revocation.List) error {
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

// TokenFile reads a token that Kubernetes renews, anew each time.
func TokenFile(path string) func() (string, error) {
	return func() (string, error) {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		return strings.TrimSpace(string(content)), nil
	}
}

// ParseRoots reads root certificates in PEM, one after the other; at least one.
func ParseRoots(content []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of type %q among root certificates", block.Type)
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse root certificate %d: %w", len(all), err)
		}
		all = append(all, root)
	}
	if len(all) == 0 {
		return nil, errors.New("no root certificate")
	}
	return all, nil
}
