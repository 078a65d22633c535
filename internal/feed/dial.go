package feed

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// An attempt that nobody answers is given up: the address may be led to a pod that ended, and the next attempt to one
	// that runs. Where one is, it answers in milliseconds.
	connectTimeout = 3 * time.Second
	// A controller that vanished without a word is noticed after 15 s, about when
	// another one leads.
	keepaliveInterval = 10 * time.Second
	keepaliveTimeout  = 5 * time.Second
	// The first response holds the whole mesh, some 500 bytes a workload:
	// room for 500,000. The controller is trusted; the limit guards against accidents.
	maxResponseBytes = 256 << 20
)

// connect prepares a connection with the roots of now.
func (c *Client) connect() (*grpc.ClientConn, error) {
	roots := c.config.Roots()
	if roots == nil {
		return nil, errors.New("no roots to verify the controller with")
	}
	name := c.config.ServerName
	if name == "" {
		host, _, err := net.SplitHostPort(c.config.Address)
		if err != nil {
			return nil, fmt.Errorf("read controller address: %w", err)
		}
		name = host
	}
	dial := c.config.Dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	return grpc.NewClient("passthrough:///"+c.config.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13,
			RootCAs:    roots,
			ServerName: name,
			VerifyConnection: func(state tls.ConnectionState) error {
				if c.config.Revoked == nil {
					return nil
				}
				return c.config.Revoked().Check(state.VerifiedChains)
			},
		})),
		grpc.WithPerRPCCredentials(bearer{token: c.config.Token, clusterID: c.config.Node.ClusterID}),
		grpc.WithContextDialer(dial),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveInterval, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
		grpc.WithDisableServiceConfig(),
	)
}

// bearer proves to the controller who asks.
type bearer struct {
	token     func() (string, error)
	clusterID string
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b.token()
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + token, "clusterid": b.clusterID}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
