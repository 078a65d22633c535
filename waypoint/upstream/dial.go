package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/balance"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// tunnelPort is where endpoints of the mesh take tunnels.
const tunnelPort = 15008

// TLS makes the configuration of a tunnel to one of expected.
type TLS func(expected ...spiffe.ID) *tls.Config

// Trust says whose certificates are trusted now.
type Trust interface {
	// Trusts judges the peer of a tunnel by the handshake that it began with, and the
	// latest of the same peer. again is when to ask again, at the latest.
	Trusts(own, latest certs.Proof) (again time.Duration, err error)
	// Retires tells whether what was shown in a handshake is soon worth nothing.
	Retires(certs.Proof) bool
	// TrustChanged is closed once the answers may be others.
	TrustChanged() <-chan struct{}
}

// connect goes the way that the endpoint is published with. more: others may follow.
func (o *Opener) connect(ctx context.Context, want Want, choice balance.Choice, more bool) (*Conn, error) {
	if more {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, endpointTimeout)
		defer cancel()
	}
	conn := &Conn{Workload: choice.Workload, Service: want.Service, Target: choice.Target}
	if choice.Workload.Protocol != workload.HBONE {
		tcp, err := (&net.Dialer{}).DialContext(ctx, "tcp", choice.Target.String())
		if err != nil {
			return nil, conns.Fail(conns.ConnectFailed, fmt.Errorf("connect to %s: %w", choice.Target, err))
		}
		conn.Stream = tcp.(*net.TCPConn)
		return conn, nil
	}
	conn.Via = netip.AddrPortFrom(choice.Target.Addr(), tunnelPort)
	identities := []spiffe.ID{choice.Workload.Identity}
	if want.Service != nil {
		identities = append(identities, want.Service.Identities...)
	}
	stream, err := o.pool.Open(ctx, pool.Target{Address: conn.Via, Identities: identities}, hbone.Request{
		Authority: choice.Target,
		Header:    forwarded(want.Client),
	})
	if err != nil {
		return nil, explain(err)
	}
	conn.Stream = stream
	return conn, nil
}

// forwarded says whom the connection is for: RFC 7239 section 4.
func forwarded(client netip.AddrPort) http.Header {
	return http.Header{"Forwarded": {`for="` + client.String() + `"`}}
}

func explain(err error) error {
	var failed *conns.Failure
	var status *hbone.StatusError
	switch {
	case errors.As(err, &failed):
		return err
	case errors.As(err, &status) && status.Code == http.StatusUnauthorized:
		return conns.Fail(conns.PolicyDenied, err)
	case errors.As(err, &status):
		return conns.Fail(conns.TunnelRefused, err)
	}
	return conns.Fail(conns.TunnelFailed, err)
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
func (o *Opener) dialTunnel(ctx context.Context, target pool.Target) (net.Conn, error) {
	if len(target.Identities) == 0 || slices.Contains(target.Identities, spiffe.ID{}) { // an empty list would mean anyone
		return nil, conns.Fail(conns.TunnelFailed, errors.New("no identity to expect of the tunnel's peer"))
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", target.Address.String())
	if err != nil {
		return nil, conns.Fail(conns.ConnectFailed, fmt.Errorf("dial tunnel to %s: %w", target.Address, err))
	}
	// What the handshake returns does not tell a peer that was not accepted from
	// a certificate of our own that did not come.
	var ownErr error
	config := o.cfg.TLS(target.Identities...)
	get := config.GetClientCertificate
	config.GetClientCertificate = func(r *tls.CertificateRequestInfo) (certificate *tls.Certificate, err error) {
		certificate, ownErr = get(r)
		return certificate, ownErr
	}
	wire, err := hbone.NewWire(raw.(*net.TCPConn))
	if err != nil {
		raw.Close()
		return nil, conns.Fail(conns.TunnelFailed, err)
	}
	conn := tls.Client(wire, config)
	started := time.Now()
	err = conn.HandshakeContext(ctx)
	o.cfg.PoolMetrics.Handshake(time.Since(started))
	switch {
	case ownErr != nil:
		raw.Close()
		return nil, conns.Fail(conns.IdentityFailed, ownErr)
	case err != nil:
		raw.Close()
		return nil, conns.FailHandshake(fmt.Errorf("handshake with %s: %w", target.Address, err))
	}
	return conn, nil
}
