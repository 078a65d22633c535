package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// carryBoth stands for the relay, which wants sockets: they have no place under a clock of their own.
func carryBoth(a, b net.Conn) {
	var both sync.WaitGroup
	both.Go(func() { io.Copy(a, b); a.Close() })
	both.Go(func() { io.Copy(b, a); b.Close() })
	both.Wait()
}

// judge judges tunnels as outbound does.
type judge struct{ *certs.Store }

func (j judge) Proof(conn net.Conn) certs.Proof {
	return certs.Proof{State: conn.(*tls.Conn).ConnectionState(), At: time.Now()}
}

// Nothing between two applications has a time to live: not the pool, the tunnel, nor its certificates, which expire
// meanwhile. The clock is synctest's; all but the sockets and what carries their bytes is what production uses.
func TestAConnectionLivesThroughADayOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certstest.NewCA(t, "cluster.local")
		held := certs.New(certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Logger: slog.New(slog.DiscardHandler)})
		client := spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "client"}
		server := spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "server"}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go held.Run(ctx)
		held.Want(client)
		held.Want(server)
		synctest.Wait()

		serverApp, serverProxy := net.Pipe()
		tunnels := pool.New(pool.Config{
			Dial: func(ctx context.Context, target pool.Target) (net.Conn, error) {
				near, far := net.Pipe()
				go hbone.Serve(context.Background(), tls.Server(far, held.ServerConfig(server)), hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
					if stream, err := in.Accept(); err == nil {
						carryBoth(stream, serverProxy)
					}
				})
				conn := tls.Client(near, held.ClientConfig(client, target.Identities...))
				return conn, conn.HandshakeContext(ctx)
			},
			Trust: judge{held}, Metrics: pool.NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler),
		})
		to := netip.MustParseAddrPort("10.1.0.2:8080")
		stream, err := tunnels.Open(t.Context(), pool.Target{Address: to, Identities: []spiffe.ID{server}}, hbone.Request{Authority: to})
		if err != nil {
			t.Fatal(err)
		}
		clientApp, clientProxy := net.Pipe()
		relayed := make(chan struct{})
		go func() {
			defer close(relayed)
			carryBoth(clientProxy, stream)
		}()

		for _, silent := range []time.Duration{0, time.Minute, 2 * time.Hour, 25 * time.Hour} {
			time.Sleep(silent)
			held.BundleChanged() // whoever lives is judged again, though the certificates have expired
			synctest.Wait()
			for _, way := range []struct{ from, to net.Conn }{{clientApp, serverApp}, {serverApp, clientApp}} {
				got := make([]byte, 5)
				go way.from.Write([]byte("hello"))
				way.to.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.ReadFull(way.to, got); err != nil {
					t.Fatalf("after %s of silence: %v", silent, err)
				}
			}
		}
		clientApp.Close()
		serverApp.Close()
		<-relayed
		tunnels.Close(t.Context())
	})
}
