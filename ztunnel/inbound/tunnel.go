package inbound

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// serveRequest carries one connection that is asked for through a tunnel. alive
// ends with the tunnel.
func (l *Listener) serveRequest(alive, cut context.Context, t accept.Tunnel, in *hbone.Incoming) {
	attempt := conns.Attempt{
		Direction: conns.Inbound,
		Transport: conns.HBONE,
		Source:    conns.Peer{Addr: t.Remote, Identity: t.Peer},
		Tunnel:    t.Local,
		Started:   time.Now(),
	}
	l.identify(&attempt.Source, true)
	// The peer gets the reason's word, and what connect(2) is to say; the details are this side's business.
	refuse := func(status int, err error) {
		reason := conns.ReasonOf(err)
		in.Refuse(status, conns.Words(reason, err))
		l.cfg.Conns.Fail(attempt, reason, err)
	}
	dst, err := targetOf(in.Authority, t.Local)
	if err != nil {
		refuse(http.StatusBadRequest, conns.Fail(conns.BadTarget, err))
		return
	}
	attempt.Destination.Addr = dst
	client, err := l.clientOf(t, dst, in.Header)
	if err != nil {
		refuse(http.StatusBadRequest, err)
		return
	}
	if client != t.Remote {
		attempt.Client = client
	}
	s := seat{client: t.Remote.Addr(), identity: t.Peer}
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
	case conns.BadTarget, conns.BadForwarded:
		return http.StatusBadRequest
	default:
		return http.StatusServiceUnavailable
	}
}
