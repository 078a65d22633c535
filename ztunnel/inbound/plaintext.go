package inbound

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// servePlaintext carries one connection that came without a tunnel. Its own
// address is the application's.
func (l *Listener) servePlaintext(_, cut context.Context, client *net.TCPConn, over func()) {
	attempt := conns.Attempt{
		Direction:   conns.Inbound,
		Transport:   conns.Plaintext,
		Source:      conns.Peer{Addr: addrPort(client.RemoteAddr())},
		Destination: conns.Peer{Addr: addrPort(client.LocalAddr())},
		Started:     time.Now(),
	}
	l.identify(&attempt.Source, false)

	connection := ends{attempt.Source.Addr, attempt.Destination.Addr}
	looped := l.loops.accepted(connection)
	done := func() {
		l.loops.forgetAccepted(connection)
		over()
	}
	refuse := func(err error) {
		relay.Reset(client)
		l.cfg.Conns.Fail(attempt, conns.ReasonOf(err), err)
		done()
	}
	if looped {
		refuse(conns.Fail(conns.Loop, errors.New("the tunnel's own connection to the application came back")))
		return
	}
	s := seat{client: attempt.Source.Addr.Addr()}
	if err := l.enter(s); err != nil {
		refuse(err)
		return
	}
	app, err := l.admit(cut, &attempt)
	if err != nil {
		l.leave(s)
		refuse(err)
		return
	}
	l.carry(l.cfg.Conns.Open(cut, attempt), client, app, func() {
		l.leave(s)
		done()
	})
}
