package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/conns"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// handshakeTimeout bounds what an unknown peer may hold without proving who it
// is; the slowest honest one waits for its certificate no longer.
const handshakeTimeout = 10 * time.Second

// tunnel is one peer's tunnel to this pod.
type tunnel struct {
	peer          spiffe.ID
	remote, local netip.AddrPort
}

// serveTunnel serves one tunnel for as long as it lives.
func (l *Listener) serveTunnel(draining, cut context.Context, raw *net.TCPConn, over func()) {
	defer over()
	cut, distrust := context.WithCancelCause(cut)
	defer distrust(nil)
	t := tunnel{remote: addrPort(raw.RemoteAddr()), local: addrPort(raw.LocalAddr())}
	started := time.Now()
	stop := context.AfterFunc(cut, func() { raw.Close() })
	defer stop()

	refused := func(err error) {
		l.cfg.Conns.RefuseTunnel(conns.Attempt{
			Direction:   conns.Inbound,
			Transport:   conns.HBONE,
			Source:      conns.Peer{Addr: t.remote, Identity: t.peer},
			Destination: conns.Peer{Workload: l.cfg.Target()},
			Tunnel:      t.local,
			Started:     started,
		}, conns.ReasonOf(err), err)
	}
	byAddress, byIdentity := l.cfg.Quotas.tunnelsByAddress, l.cfg.Quotas.tunnelsByIdentity
	if !byAddress.Take(t.remote.Addr()) {
		relay.Reset(raw)
		refused(exceeds(byAddress, t.remote.Addr(), conns.TooManyTunnels, "tunnels"))
		return
	}
	defer byAddress.Give(t.remote.Addr())
	wire, err := hbone.NewWire(raw)
	if err != nil {
		raw.Close()
		return // it is closed already
	}
	conn, peer, err := l.meet(cut, raw, wire)
	if err != nil {
		conn.Close() // in order, so that the peer gets our alert
		refused(err)
		return
	}
	t.peer = peer
	if !byIdentity.Take(t.peer) {
		hbone.TurnAway(conn, string(conns.TooManyTunnels))
		refused(exceeds(byIdentity, t.peer, conns.TooManyTunnels, "tunnels"))
		return
	}
	defer byIdentity.Give(t.peer)
	forget := l.peers.follow(conn.ConnectionState(), started, distrust)
	defer forget()
	err = hbone.Serve(draining, conn, hbone.Options{DrainTimeout: l.cfg.DrainTimeout}, func(ctx context.Context, in *hbone.Incoming) {
		l.serveRequest(ctx, cut, t, in)
	})
	if fault := hbone.FaultOf(err); fault != "" {
		l.cfg.Conns.EndTunnel(conns.Attempt{Source: conns.Peer{Addr: t.remote, Identity: t.peer}, Tunnel: t.local}, conns.Reason(fault), err)
	} else if err != nil {
		l.cfg.Logger.Debug("tunnel ended", "peer", t.remote, "identity", t.peer, "error", err)
	}
}

// meet shakes hands, unless too many do. Its error is always a *conns.Failure.
func (l *Listener) meet(cut context.Context, raw *net.TCPConn, wire net.Conn) (*tls.Conn, spiffe.ID, error) {
	var evicted atomic.Bool
	leave, ok := l.cfg.Quotas.handshakes.Enter(addrPort(raw.RemoteAddr()).Addr(), func() {
		evicted.Store(true)
		raw.Close()
	})
	if !ok {
		return tls.Server(wire, l.cfg.TLS), spiffe.ID{}, conns.Fail(conns.TooManyHandshakes, errors.New("too many tunnels are under way"))
	}
	defer leave()
	conn, peer, err := l.handshake(cut, wire)
	if err != nil && evicted.Load() {
		err = conns.Fail(conns.TooManyHandshakes, errors.New("made room for another client's tunnel: too many of this one are under way"))
	}
	return conn, peer, err
}

// handshake learns who the peer is. Its error is always a *conns.Failure.
func (l *Listener) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, spiffe.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	// What the handshake returns does not tell a peer that was not accepted from
	// a certificate of our own that did not come.
	var ownErr error
	config := l.cfg.TLS.Clone()
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (certificate *tls.Certificate, err error) {
		certificate, ownErr = l.cfg.TLS.GetCertificate(hello)
		return certificate, ownErr
	}
	conn := tls.Server(raw, config)
	err := conn.HandshakeContext(ctx)
	switch {
	case ownErr != nil:
		return conn, spiffe.ID{}, conns.Fail(conns.IdentityFailed, ownErr)
	case err != nil:
		return conn, spiffe.ID{}, conns.FailHandshake(fmt.Errorf("handshake: %w", err))
	}
	peer, err := certs.PeerID(conn.ConnectionState())
	if err != nil {
		return conn, spiffe.ID{}, conns.Fail(conns.TLSFailed, err)
	}
	return conn, peer, nil
}

// serveRequest carries one connection that is asked for through a tunnel. alive
// ends with the tunnel.
func (l *Listener) serveRequest(alive, cut context.Context, t tunnel, in *hbone.Incoming) {
	attempt := conns.Attempt{
		Direction: conns.Inbound,
		Transport: conns.HBONE,
		Source:    conns.Peer{Addr: t.remote, Identity: t.peer},
		Tunnel:    t.local,
		Started:   time.Now(),
	}
	l.identify(&attempt.Source, true)
	// The peer gets the reason's word, and what connect(2) is to say; the details are this side's business.
	refuse := func(status int, err error) {
		reason := conns.ReasonOf(err)
		in.Refuse(status, conns.Words(reason, err))
		l.cfg.Conns.Fail(attempt, reason, err)
	}
	dst, err := targetOf(in.Authority, t.local)
	if err != nil {
		refuse(http.StatusBadRequest, conns.Fail(conns.BadTarget, err))
		return
	}
	attempt.Destination.Addr = dst
	s := seat{client: t.remote.Addr(), identity: t.peer}
	if err := l.enter(s); err != nil {
		refuse(statusOf(err), err)
		return
	}
	app, err := l.admit(alive, &attempt)
	if err != nil {
		l.leave(s)
		refuse(statusOf(err), err)
		return
	}
	stream, err := in.Accept()
	if err != nil {
		l.leave(s)
		relay.Reset(app.TCPConn)
		app.done()
		l.cfg.Conns.Fail(attempt, conns.TunnelLost, err)
		return
	}
	conn := l.cfg.Conns.Open(cut, attempt)
	stop := context.AfterFunc(alive, func() {
		if cut.Err() == nil { // which says more
			conn.Cut(conns.TunnelLost, context.Cause(alive))
		}
	})
	leave := in.Keep()
	l.carry(conn, stream, app, func() {
		stop()
		leave()
		l.leave(s)
	})
}

// targetOf reads the address that a peer wants. It must be the one that its
// tunnel was opened to: a tunnel proves that pod's identity and no other's.
func targetOf(authority string, local netip.AddrPort) (netip.AddrPort, error) {
	dst, err := netip.ParseAddrPort(authority)
	if err != nil {
		return netip.AddrPort{}, errors.New("the target is not an address and port")
	}
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	if dst.Addr() != local.Addr() {
		return netip.AddrPort{}, fmt.Errorf("%s is not behind a tunnel to %s", dst.Addr(), local.Addr())
	}
	if dst.Port() == 0 {
		return netip.AddrPort{}, errors.New("port 0 is no target")
	}
	return dst, nil
}

// statusOf is the answer to a peer, by why its connection was not admitted.
func statusOf(err error) int {
	switch conns.ReasonOf(err) {
	case conns.PolicyDenied, conns.WaypointBypassed:
		return http.StatusUnauthorized
	case conns.BadTarget:
		return http.StatusBadRequest
	default:
		return http.StatusServiceUnavailable
	}
}
