package outbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/conns"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// setupTimeout is how long an application waits for its connection to be
// refused or established: a dial of a tunnel and one of the far application.
const setupTimeout = 20 * time.Second

// reasonOf is the reason of whatever connect failed with.
func reasonOf(err error) conns.Reason {
	if refusal := (*route.Refusal)(nil); errors.As(err, &refusal) {
		return conns.Reason(refusal.Reason)
	}
	return conns.ReasonOf(err)
}

// attempt is what is known of a connection before anything is decided.
func (l *Listener) attempt(client, dst netip.AddrPort) *conns.Attempt {
	a := &conns.Attempt{
		Direction:   conns.Outbound,
		Transport:   conns.Plaintext,
		Source:      conns.Peer{Addr: client},
		Destination: conns.Peer{Addr: dst},
		Started:     time.Now(),
	}
	if source := l.cfg.Source(); source != nil {
		a.Source.Workload, a.Source.Identity = source, source.Identity
	}
	return a
}

// serve carries one connection of the pod's application, whose upstream may stand already.
func (l *Listener) serve(_, cut context.Context, app *net.TCPConn) {
	key := ends{addrPort(app.RemoteAddr()), addrPort(app.LocalAddr())}
	prepared := l.preparations.claim(key)
	defer l.preparations.release(key)
	if prepared != nil {
		defer prepared.give()
		l.serveHeld(cut, app, prepared)
		return
	}
	attempt := l.attempt(key.client, key.dst)
	give, ok := l.cfg.Share.Take()
	if !ok {
		relay.Reset(app)
		l.cfg.Conns.Fail(*attempt, conns.Overloaded, errOverloaded)
		return
	}
	defer give()
	up, err := l.connect(cut, attempt.Source.Workload, key.dst, attempt)
	if err != nil {
		relay.Reset(app)
		l.cfg.Conns.Fail(*attempt, reasonOf(err), err)
		return
	}
	l.carry(cut, *attempt, app, up)
}

// serveHeld carries a connection that was held: until its upstream stood, or, if holding ends, until just now.
func (l *Listener) serveHeld(cut context.Context, app *net.TCPConn, prepared *preparation) {
	stop := context.AfterFunc(cut, prepared.cancel)
	<-prepared.done
	stop()
	if prepared.err != nil {
		relay.Reset(app)
		return
	}
	l.carry(cut, *prepared.attempt, app, prepared.upstream)
}

// carry relays an established connection and ends its records.
func (l *Listener) carry(cut context.Context, attempt conns.Attempt, app *net.TCPConn, up upstream) {
	defer up.lease.End()
	conn := l.cfg.Conns.Open(cut, attempt)
	var meter relay.Meter = conn
	if up.local != nil {
		meter = both{conn, up.local}
		stop := context.AfterFunc(up.local.Context(), func() {
			conn.Cut(conns.CutByDestination, context.Cause(up.local.Context()))
		})
		defer stop()
	}
	res := relay.Copy(conn.Context(), app, up.conn, meter)
	reason := conns.Reason(res.Reason)
	if res.Reason == relay.Cut {
		reason = conns.Drained
	}
	conn.End(reason, res.Err)
	if up.local != nil {
		up.local.End(reason, res.Err)
	}
}

// both counts for the source's record and for the destination's.
type both struct{ source, destination relay.Meter }

func (b both) Moved(toServer, toClient int64) {
	b.source.Moved(toServer, toClient)
	b.destination.Moved(toServer, toClient)
}

// describe completes the attempt with what was decided, whatever was before.
func describe(a *conns.Attempt, up route.Upstream) {
	a.Transport, a.Tunnel, a.Destination.Identity = conns.Plaintext, netip.AddrPort{}, spiffe.ID{}
	a.Destination.Addr, a.Destination.Workload, a.Service = up.Address, up.Workload, up.Service
	switch up.Kind {
	case route.Tunnel:
		a.Transport, a.Tunnel = conns.HBONE, up.Via
	case route.Local:
		a.Transport = conns.Local
	}
	if up.Kind != route.Plaintext && up.Workload != nil {
		a.Destination.Identity = up.Workload.Identity
	}
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
