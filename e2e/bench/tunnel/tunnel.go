// Package tunnel is the two ends of tunnels as ztunnel has them, without a mesh: the pool
// of a source, and a listener that takes what comes.
//
// What is carried in them is its callers' business.
package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// trust judges tunnels as ztunnel does.
type trust struct{ *certs.Store }

func (t trust) Proof(conn net.Conn) certs.Proof {
	return certs.Proof{State: conn.(*tls.Conn).ConnectionState(), At: time.Now()}
}

// NewPool makes the pool of a source that is self.
func NewPool(store *certs.Store, self spiffe.ID) *pool.Pool {
	return pool.New(pool.Config{
		Dial: func(ctx context.Context, target pool.Target) (net.Conn, error) {
			raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", target.Address.String())
			if err != nil {
				return nil, err
			}
			wire, err := hbone.NewWire(raw.(*net.TCPConn))
			if err != nil {
				raw.Close()
				return nil, err
			}
			conn := tls.Client(wire, store.ClientConfig(self, target.Identities...))
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
}

// Serve takes the tunnel that comes by a connection, as self, and gives what is asked
// for in it to deliver. What goes wrong is told on standard error.
func Serve(store *certs.Store, self spiffe.ID, raw *net.TCPConn, deliver func(context.Context, *hbone.Incoming)) {
	wire, err := hbone.NewWire(raw)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tunnel:", err)
		raw.Close()
		return
	}
	conn := tls.Server(wire, store.ServerConfig(self))
	if err := conn.Handshake(); err != nil {
		fmt.Fprintln(os.Stderr, "handshake:", err)
		conn.Close()
		return
	}
	if err := hbone.Serve(context.Background(), conn, hbone.Options{}, deliver); err != nil {
		fmt.Fprintln(os.Stderr, "tunnel:", err)
	}
}
