package variant

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"

	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/tunnel"
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

// runBareClient is proxy A: each connection becomes a stream.
func runBareClient() error {
	to, app, err := addresses()
	if err != nil {
		return err
	}
	store, err := pki.Keep(os.Getenv(pkiVariable), pki.ClientID)
	if err != nil {
		return err
	}
	carrier, err := relay.New()
	if err != nil {
		return err
	}
	tunnels := tunnel.NewPool(store, pki.ClientID)
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
	store, err := pki.Keep(os.Getenv(pkiVariable), pki.ServerID)
	if err != nil {
		return err
	}
	carrier, err := relay.New()
	if err != nil {
		return err
	}
	return acceptAll(func(raw *net.TCPConn) { tunnel.Serve(store, pki.ServerID, raw, deliver(carrier)) })
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
