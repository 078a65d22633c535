package inbound

import (
	"errors"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/listen"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// plaintextPerAddress leaves half of what a pod's listener takes to others: who
// shows no identity is known by nothing but its address.
const plaintextPerAddress = listen.Limit / 2

// seat is what one connection holds, until leave.
type seat struct {
	client   netip.Addr
	identity spiffe.ID // zero in plaintext
}

// enter takes a seat: of one who has proven who it is in the process, of one who has
// not at the pod alone. Its error is a *conns.Failure.
func (l *Listener) enter(s seat) error {
	switch {
	case s.identity != (spiffe.ID{}):
		if err := l.cfg.Quotas.Enter(s.client, s.identity); err != nil {
			return err
		}
	case !l.unproven.Take(s.client):
		return accept.Exceeds(l.unproven, s.client, conns.TooManyConnections, "connections")
	}
	if !l.cfg.Share.Take(s.files()) {
		l.leaveQuotas(s)
		return conns.Fail(conns.Overloaded, errors.New("the node's tunnel carries nearly as much as it can, and the pod has its share of that"))
	}
	return nil
}

func (l *Listener) leave(s seat) {
	l.leaveQuotas(s)
	l.cfg.Share.Give(s.files())
}

// files that the connection needs: of what comes through a tunnel, the application's end.
func (s seat) files() int {
	if s.identity != (spiffe.ID{}) {
		return conns.FilesOfStream
	}
	return conns.FilesAtMost
}

func (l *Listener) leaveQuotas(s seat) {
	if s.identity == (spiffe.ID{}) {
		l.unproven.Give(s.client)
	} else {
		l.cfg.Quotas.Leave(s.client, s.identity)
	}
}
