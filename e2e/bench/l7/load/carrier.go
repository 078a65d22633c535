package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/tunnel"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// carrier opens connections to a target; close ends what they share.
type carrier struct {
	dial  func(context.Context) (net.Conn, error)
	close func()
}

func newCarrier(to Target) (carrier, error) {
	dialTCP := func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", to.Address.String())
	}
	switch to.Carrier {
	case Plain:
		return carrier{dialTCP, func() {}}, nil
	case TLS:
		own, roots, err := material(pki.FilesOf(to.PKI, pki.ClientName))
		if err != nil {
			return carrier{}, err
		}
		config := &tls.Config{
			Certificates: []tls.Certificate{own}, RootCAs: roots, ServerName: pki.ServerName, MinVersion: tls.VersionTLS13,
			NextProtos: []string{"http/1.1"}, DynamicRecordSizingDisabled: true,
		}
		return carrier{func(ctx context.Context) (net.Conn, error) {
			raw, err := dialTCP(ctx)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, config)
			if err := conn.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, err
			}
			return conn, nil
		}, func() {}}, nil
	case Tunnel:
		return newTunnels(to)
	}
	return carrier{}, fmt.Errorf("no such carrier: %q", to.Carrier)
}

func newTunnels(to Target) (carrier, error) {
	expected, err := spiffe.Parse(to.Identity)
	if err != nil {
		return carrier{}, err
	}
	store, err := pki.Keep(to.PKI, pki.ClientID)
	if err != nil {
		return carrier{}, err
	}
	tunnels := tunnel.NewPool(store, pki.ClientID)
	target := pool.Target{Address: to.Address, Identities: []spiffe.ID{expected}}
	return carrier{
		dial: func(ctx context.Context) (net.Conn, error) {
			return tunnels.Open(ctx, target, hbone.Request{Authority: to.Authority})
		},
		close: func() {
			over, cancel := context.WithCancel(context.Background())
			cancel()
			tunnels.Close(over)
		},
	}, nil
}
