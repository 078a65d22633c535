package accept

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// handshakeTimeout bounds what an unknown peer may hold without proving who it
// is; the slowest honest one waits for its certificate no longer.
const handshakeTimeout = 10 * time.Second

// Tunnel is one peer's.
type Tunnel struct {
	// Peer proved to be who it is, by Certificate.
	Peer        spiffe.ID
	Certificate *x509.Certificate
	// Remote and Local are the ends of its TCP connection.
	Remote, Local netip.AddrPort
}

// Handler answers a request for a connection, by Accept or Refuse. alive ends with
// the tunnel, cut when all connections must.
type Handler func(alive, cut context.Context, t Tunnel, in *hbone.Incoming)

// Serve serves one tunnel for as long as it lives. While draining has ended no new
// request is taken.
func (s *Server) Serve(draining, cut context.Context, raw *net.TCPConn, h Handler) {
	cut, distrust := context.WithCancelCause(cut)
	defer distrust(nil)
	t := Tunnel{Remote: addrPort(raw.RemoteAddr()), Local: addrPort(raw.LocalAddr())}
	started := time.Now()
	stop := context.AfterFunc(cut, func() { raw.Close() })
	defer stop()

	refused := func(err error) {
		s.cfg.Conns.RefuseTunnel(conns.Attempt{
			Direction:   conns.Inbound,
			Transport:   conns.HBONE,
			Source:      conns.Peer{Addr: t.Remote, Identity: t.Peer},
			Destination: conns.Peer{Workload: s.cfg.Target()},
			Tunnel:      t.Local,
			Started:     started,
		}, conns.ReasonOf(err), err)
	}
	byAddress, byIdentity := s.cfg.Quotas.tunnelsByAddress, s.cfg.Quotas.tunnelsByIdentity
	if !byAddress.Take(t.Remote.Addr()) {
		reset(raw)
		refused(Exceeds(byAddress, t.Remote.Addr(), conns.TooManyTunnels, "tunnels"))
		return
	}
	defer byAddress.Give(t.Remote.Addr())
	wire, err := hbone.NewWire(raw)
	if err != nil {
		raw.Close()
		return // it is closed already
	}
	conn, peer, err := s.meet(cut, raw, wire)
	if err != nil {
		conn.Close() // in order, so that the peer gets our alert
		refused(err)
		return
	}
	t.Peer, t.Certificate = peer, conn.ConnectionState().PeerCertificates[0]
	if !byIdentity.Take(t.Peer) {
		hbone.TurnAway(conn, string(conns.TooManyTunnels))
		refused(Exceeds(byIdentity, t.Peer, conns.TooManyTunnels, "tunnels"))
		return
	}
	defer byIdentity.Give(t.Peer)
	forget := s.peers.follow(certs.Proof{State: conn.ConnectionState(), At: time.Now()}, proven{t.Remote.Addr(), t.Peer}, distrust)
	defer forget()
	err = hbone.Serve(draining, conn, hbone.Options{DrainTimeout: s.cfg.DrainTimeout}, func(ctx context.Context, in *hbone.Incoming) {
		h(ctx, cut, t, in)
	})
	ended := conns.Attempt{Source: conns.Peer{Addr: t.Remote, Identity: t.Peer}, Tunnel: t.Local}
	if failed, ok := errors.AsType[*conns.Failure](context.Cause(cut)); ok { // trusted no longer
		s.cfg.Conns.EndTunnel(ended, failed.Reason, failed.Err)
	} else if fault := hbone.FaultOf(err); fault != "" {
		s.cfg.Conns.EndTunnel(ended, conns.Reason(fault), err)
	} else if err != nil {
		s.cfg.Logger.Debug("tunnel ended", "peer", t.Remote, "identity", t.Peer, "error", err)
	}
}

// meet shakes hands, unless too many do. Its error is always a *conns.Failure.
func (s *Server) meet(cut context.Context, raw *net.TCPConn, wire net.Conn) (*tls.Conn, spiffe.ID, error) {
	var evicted atomic.Bool
	leave, ok := s.cfg.Quotas.handshakes.Enter(addrPort(raw.RemoteAddr()).Addr(), func() {
		evicted.Store(true)
		raw.Close()
	})
	if !ok {
		return tls.Server(wire, s.cfg.TLS), spiffe.ID{}, conns.Fail(conns.TooManyHandshakes, errors.New("too many tunnels are under way"))
	}
	defer leave()
	conn, peer, err := s.handshake(cut, wire)
	if err != nil && evicted.Load() {
		err = conns.Fail(conns.TooManyHandshakes, errors.New("made room for another client's tunnel: too many of this one are under way"))
	}
	return conn, peer, err
}

// handshake learns who the peer is. Its error is always a *conns.Failure.
func (s *Server) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, spiffe.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	// What the handshake returns does not tell a peer that was not accepted from
	// a certificate of our own that did not come.
	var ownErr error
	config := s.cfg.TLS.Clone()
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (certificate *tls.Certificate, err error) {
		certificate, ownErr = s.cfg.TLS.GetCertificate(hello)
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

// reset closes a connection with a RST.
func reset(tcp *net.TCPConn) {
	tcp.SetLinger(0)
	tcp.Close()
}

// addrPort of a TCP address; IPv4 as four bytes also on a dual-stack socket.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
