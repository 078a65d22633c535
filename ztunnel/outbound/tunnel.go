package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// openStream asks the far side of a tunnel for the target.
func (l *Listener) openStream(ctx context.Context, source *workload.Workload, client netip.AddrPort, up route.Upstream) (upstream, error) {
	if len(up.Identities) == 0 { // an empty list would mean anyone
		return upstream{}, conns.Fail(conns.TunnelFailed, errors.New("no identity to expect of the tunnel's peer"))
	}
	stream, err := l.pool.Open(ctx, pool.Target{Address: up.Via, Identities: up.Identities}, hbone.Request{
		Authority: up.Address,
		Header:    header(source, client),
	})
	var failed *conns.Failure
	var status *hbone.StatusError
	switch {
	case err == nil:
		return upstream{conn: stream, tunnel: stream}, nil
	case errors.As(err, &failed):
		return upstream{}, err
	case errors.As(err, &status) && status.Code == 401:
		return upstream{}, conns.Fail(conns.PolicyDenied, err)
	case errors.As(err, &status):
		return upstream{}, conns.Fail(conns.TunnelRefused, err)
	}
	return upstream{}, conns.Fail(conns.TunnelFailed, err)
}

// peerTrust judges a tunnel's far end, for the pool.
type peerTrust struct{ Trust }

// Proof is what both ends of what dialTunnel returned have shown.
func (p peerTrust) Proof(conn net.Conn) certs.Proof {
	proof := certs.Proof{At: time.Now()}
	if peer, ok := conn.(*tls.Conn); ok { // else it has proven nothing
		proof.State = peer.ConnectionState()
	}
	return proof
}

// Trusts judges a tunnel's far end.
func (p peerTrust) Trusts(own, latest certs.Proof) (again time.Duration, err error) {
	if again, err = p.Trust.Trusts(own, latest); err != nil {
		return 0, conns.Distrust(err)
	}
	return again, nil
}

// dialTunnel is the pool's Dial.
func (l *Listener) dialTunnel(ctx context.Context, target pool.Target) (net.Conn, error) {
	raw, err := l.cfg.Dialer.Dial(ctx, target.Address)
	if err != nil {
		return nil, conns.Fail(conns.ConnectFailed, fmt.Errorf("dial tunnel to %s: %w", target.Address, err))
	}
	config := l.cfg.TLS(target.Identities...)
	// What the handshake returns does not tell a peer that was not accepted from
	// a certificate of our own that did not come.
	var ownErr error
	get := config.GetClientCertificate
	config.GetClientCertificate = func(r *tls.CertificateRequestInfo) (certificate *tls.Certificate, err error) {
		certificate, ownErr = get(r)
		return certificate, ownErr
	}
	wire, err := hbone.NewWire(raw)
	if err != nil {
		relay.Reset(raw)
		return nil, conns.Fail(conns.TunnelFailed, err)
	}
	conn := tls.Client(wire, config)
	started := time.Now()
	err = conn.HandshakeContext(ctx)
	l.cfg.PoolMetrics.Handshake(time.Since(started))
	switch {
	case ownErr != nil:
		relay.Reset(raw)
		return nil, conns.Fail(conns.IdentityFailed, ownErr)
	case err != nil:
		relay.Reset(raw)
		return nil, conns.FailHandshake(fmt.Errorf("handshake with %s: %w", target.Address, err))
	}
	return conn, nil
}
