package inbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// connectTimeout is how long the application may take to accept. It is of the
// same node: only a full queue makes it wait at all.
const connectTimeout = 10 * time.Second

// meshPorts are ours in every captured pod: behind them is no application, and
// connecting there would come back to us.
var meshPorts = []uint16{route.OutboundPort, route.PlaintextPort, route.HBONEPort}

// admit checks a connection that attempt describes, and connects the
// application. Its error is always a *conns.Failure.
func (l *Listener) admit(ctx context.Context, attempt *conns.Attempt) (*appConn, error) {
	target := l.cfg.Target()
	if target == nil {
		return nil, conns.Fail(conns.UnknownTarget, errors.New("nothing is known about the pod itself"))
	}
	dst := attempt.Destination.Addr
	attempt.Destination.Workload, attempt.Destination.Identity = target, target.Identity
	if slices.Contains(meshPorts, dst.Port()) {
		return nil, conns.Fail(conns.BadTarget, fmt.Errorf("port %d is the mesh's own", dst.Port()))
	}
	if err := l.cfg.Policy.Admit(ctx, attempt); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	client := attempt.Source.Addr
	if attempt.Client.IsValid() {
		client = attempt.Client
	}
	tcp, err := l.cfg.App.DialApp(ctx, client.Addr(), dst)
	if err != nil {
		return nil, conns.Fail(conns.ConnectFailed, fmt.Errorf("connect the application at %s: %w", dst, err))
	}
	app := &appConn{TCPConn: tcp, loops: &l.loops, ends: ends{addrPort(tcp.LocalAddr()), addrPort(tcp.RemoteAddr())}}
	if l.loops.dialed(app.ends) {
		relay.Reset(tcp)
		l.loops.forgetDialed(app.ends)
		return nil, conns.Fail(conns.Loop, fmt.Errorf("connecting the application at %s came back to the tunnel", dst))
	}
	return app, nil
}

// appConn is the application's end, registered for as long as it is open.
type appConn struct {
	*net.TCPConn
	loops *loops
	ends  ends
}

func (a *appConn) done() { a.loops.forgetDialed(a.ends) }

// identify adds to the record who the peer is, as far as its address and what it
// proved agree.
func (l *Listener) identify(p *conns.Peer, proven bool) {
	w, ok := l.cfg.Snapshot().WorkloadByAddr(p.Addr.Addr())
	if ok && (!proven || w.Identity == p.Identity) {
		p.Workload = w
	}
}

// carry relays an established connection, and ends its record when that is over.
// Policy may have changed since it was admitted: then nothing of it is relayed.
func (l *Listener) carry(conn *conns.Conn, client relay.Conn, app *appConn, over func()) {
	forget := l.cfg.Policy.Follow(conn)
	done := func(reason conns.Reason, err error) {
		forget()
		// What the connection's context ended with goes before what that led to.
		if failure, ok := errors.AsType[*conns.Failure](context.Cause(conn.Context())); ok && reason != conns.Closed {
			reason, err = failure.Reason, failure.Err
		}
		conn.End(reason, err)
		app.done()
		over()
	}
	if conn.Context().Err() != nil {
		relay.Reset(client)
		relay.Reset(app.TCPConn)
		done(conns.Drained, context.Cause(conn.Context()))
		return
	}
	l.cfg.Relay.Start(conn.Context(), client, app.TCPConn, conn, func(res relay.Result) {
		reason := conns.Reason(res.Reason)
		if res.Reason == relay.Cut {
			reason = conns.Drained
		}
		done(reason, res.Err)
	})
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
