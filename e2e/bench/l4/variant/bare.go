package variant

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/daemon"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

const (
	bareClientRole = "bare-client"
	bareServerRole = "bare-server"
)

// Bare is ztunnel's engine (pool, hbone, relay, certs) on plain listeners: no
// capture, configuration, policy, metrics or logs.
func Bare(ctx context.Context, site Site) (Path, error) {
	client := process.Self(bareClientRole, pkiVariable+"="+site.PKI, appVariable+"="+site.App.String(),
		listenVariable+"="+outbound.String(), toVariable+"="+site.tunnel().String())
	server := process.Self(bareServerRole, pkiVariable+"="+site.PKI, appVariable+"="+site.App.String(),
		listenVariable+"="+site.tunnel().String())
	return startPair(ctx, site, client, server, version(), probeTLS("h2"))
}

// version is this tree's, as the benchmark was built from it.
func version() string { return daemon.Version }

// moved counts nothing.
type moved struct{}

func (moved) Moved(int64, int64) {}

// trust judges tunnels as ztunnel does.
type trust struct{ *certs.Store }

func (t trust) Trusts(conn net.Conn, since time.Time) error {
	return t.Store.Trusts(conn.(*tls.Conn).ConnectionState(), since)
}

// runBareClient is proxy A: each connection becomes a stream.
func runBareClient() error {
	to, app, err := addresses()
	if err != nil {
		return err
	}
	store, err := keepCertificate(pki.ClientID)
	if err != nil {
		return err
	}
	carrier, err := relay.New()
	if err != nil {
		return err
	}
	config := store.ClientConfig(pki.ClientID, pki.ServerID)
	tunnels := pool.New(pool.Config{
		Dial: func(ctx context.Context, target pool.Target) (net.Conn, error) {
			var dialer net.Dialer
			raw, err := dialer.DialContext(ctx, "tcp", target.Address.String())
			if err != nil {
				return nil, err
			}
			wire, err := hbone.NewWire(raw.(*net.TCPConn))
			if err != nil {
				raw.Close()
				return nil, err
			}
			conn := tls.Client(wire, config)
			if err := conn.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, err
			}
			return conn, nil
		},
		Trust:   trust{store},
		Metrics: pool.NewMetrics(prometheus.NewRegistry()),
		Logger:  slog.New(slog.DiscardHandler),
	})
	target := pool.Target{Address: to, Identities: []spiffe.ID{pki.ServerID}}
	return acceptAll(func(client *net.TCPConn) {
		stream, err := tunnels.Open(context.Background(), target, hbone.Request{Authority: app})
		if err != nil {
			fmt.Fprintln(os.Stderr, "open stream:", err)
			relay.Reset(client)
			return
		}
		carrier.Start(context.Background(), client, stream, moved{}, func(relay.Result) {})
	})
}

// runBareServer is proxy B: each stream becomes a connection to the application.
func runBareServer() error {
	store, err := keepCertificate(pki.ServerID)
	if err != nil {
		return err
	}
	carrier, err := relay.New()
	if err != nil {
		return err
	}
	config := store.ServerConfig(pki.ServerID)
	return acceptAll(func(raw *net.TCPConn) {
		wire, err := hbone.NewWire(raw)
		if err != nil {
			fmt.Fprintln(os.Stderr, "tunnel:", err)
			raw.Close()
			return
		}
		conn := tls.Server(wire, config)
		if err := conn.Handshake(); err != nil {
			fmt.Fprintln(os.Stderr, "handshake:", err)
			conn.Close()
			return
		}
		if err := hbone.Serve(context.Background(), conn, hbone.Options{}, deliver(carrier)); err != nil {
			fmt.Fprintln(os.Stderr, "tunnel:", err)
		}
	})
}

// deliver connects the application and carries one stream.
func deliver(carrier *relay.Relay) func(context.Context, *hbone.Incoming) {
	return func(ctx context.Context, in *hbone.Incoming) {
		var dialer net.Dialer
		app, err := dialer.DialContext(ctx, "tcp", in.Authority)
		if err != nil {
			fmt.Fprintln(os.Stderr, "connect the application:", err)
			in.Refuse(http.StatusServiceUnavailable, "ConnectFailed")
			return
		}
		stream, err := in.Accept()
		if err != nil {
			relay.Reset(app)
			return
		}
		leave := in.Keep()
		carrier.Start(ctx, stream, app.(*net.TCPConn), moved{}, func(relay.Result) { leave() })
	}
}

func addresses() (to, app netip.AddrPort, err error) {
	if to, err = netip.ParseAddrPort(os.Getenv(toVariable)); err != nil {
		return to, app, fmt.Errorf("read the tunnel's address: %w", err)
	}
	if app, err = netip.ParseAddrPort(os.Getenv(appVariable)); err != nil {
		return to, app, fmt.Errorf("read the application's address: %w", err)
	}
	return to, app, nil
}

// keepCertificate has a certificate ready before the first handshake.
func keepCertificate(id spiffe.ID) (*certs.Store, error) {
	authority, err := pki.Load(os.Getenv(pkiVariable))
	if err != nil {
		return nil, err
	}
	store := certs.New(certs.Config{Fetch: authority.Fetch, Bundle: authority.Bundle, Logger: slog.New(slog.DiscardHandler)})
	store.Want(id)
	go store.Run(context.Background())
	if _, err := store.Get(context.Background(), id); err != nil {
		return nil, err
	}
	return store, nil
}
