package outbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
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
func (l *Listener) serve(_, cut context.Context, app *net.TCPConn, over func()) {
	key := ends{addrPort(app.RemoteAddr()), addrPort(app.LocalAddr())}
	attempt, up, err := l.upstream(cut, key)
	if err != nil {
		relay.Reset(app)
		l.preparations.release(key)
		over()
		return
	}
	l.carry(cut, attempt, app, up, func() {
		l.preparations.release(key)
		l.cfg.Share.Give(up.files)
		over()
	})
}

// upstream of an accepted connection: the one that was prepared while it was held, or one that is established now. It has its
// part of the pod's share. An error has been recorded.
func (l *Listener) upstream(cut context.Context, key ends) (*conns.Attempt, upstream, error) {
	if prepared := l.preparations.claim(key); prepared != nil {
		// If holding ends, it may not be there yet.
		stop := context.AfterFunc(cut, prepared.cancel)
		<-prepared.done
		stop()
		return prepared.attempt, prepared.upstream, prepared.err
	}
	attempt := l.attempt(key.client, key.dst)
	if !l.cfg.Share.Take(conns.FilesAtMost) {
		l.cfg.Conns.Fail(*attempt, conns.Overloaded, errOverloaded)
		return attempt, upstream{}, errOverloaded
	}
	up, err := l.connect(cut, attempt.Source.Workload, key.dst, attempt)
	if err != nil {
		l.cfg.Share.Give(conns.FilesAtMost)
		l.cfg.Conns.Fail(*attempt, reasonOf(err), err)
		return attempt, up, err
	}
	l.settle(&up)
	return attempt, up, nil
}

// settle gives back what a connection does not need of the pod's share, now that it
// is known which way it goes.
func (l *Listener) settle(up *upstream) {
	up.files = conns.FilesAtMost
	if up.tunnel != nil {
		up.files = conns.FilesOfStream
		l.cfg.Share.Give(conns.FilesAtMost - up.files)
	}
}

// carry relays an established connection, and ends its records when that is over.
func (l *Listener) carry(cut context.Context, attempt *conns.Attempt, app *net.TCPConn, up upstream, over func()) {
	conn := l.cfg.Conns.Open(cut, *attempt)
	if err := l.mayStay(attempt); err != nil {
		conn.Cut(conns.ReasonOf(err), err)
	}
	if up.tunnel != nil {
		up.tunnel.OnDistrust(func(err error) { conn.Cut(conns.ReasonOf(err), err) })
	}
	var meter relay.Meter = conn
	if up.local != nil {
		meter = both{conn, up.local}
		stop := context.AfterFunc(up.local.Context(), func() {
			conn.Cut(conns.CutByDestination, context.Cause(up.local.Context()))
		})
		after := over
		over = func() { stop(); after() }
	}
	l.cfg.Relay.Start(conn.Context(), app, up.conn, meter, func(res relay.Result) {
		reason := conns.Reason(res.Reason)
		if res.Reason == relay.Cut {
			reason = conns.Drained
		}
		conn.End(reason, res.Err)
		if up.local != nil {
			up.local.End(reason, res.Err)
		}
		up.lease.End()
		over()
	})
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
