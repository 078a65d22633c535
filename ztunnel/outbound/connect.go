package outbound

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/conns"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// lookupTimeout is how long a connection to an unknown address waits for the
// controller's word: many times a round trip to it, and short enough for the
// patience of what connects to a pod that has just started.
const lookupTimeout = 2 * time.Second

// upstream is the established far side of a connection.
type upstream struct {
	conn relay.Conn
	// local is set if the far side is a pod of this node.
	local LocalConn
}

// connect decides and establishes; attempt then says what was decided.
func (l *Listener) connect(cut context.Context, source *workload.Workload, dst netip.AddrPort, attempt *conns.Attempt) (upstream, error) {
	ctx, cancel := context.WithTimeout(cut, setupTimeout)
	defer cancel()
	up, err := l.decide(ctx, source, dst)
	if err != nil {
		return upstream{}, err
	}
	describe(attempt, up)
	switch up.Kind {
	case route.Tunnel:
		return l.openStream(ctx, source, attempt.Source.Addr, up)
	case route.Local:
		conn, err := l.cfg.Local.Deliver(ctx, up.Workload, LocalSource{source, attempt.Source.Addr}, up.Address)
		if err != nil {
			return upstream{}, conns.Fail(conns.DeliveryFailed, fmt.Errorf("deliver to %s on this node: %w", up.Workload.UID, err))
		}
		return upstream{conn: conn.TCP(), local: conn}, nil
	case route.Plaintext:
		conn, err := l.cfg.Dialer.Dial(ctx, up.Address)
		if err != nil {
			return upstream{}, conns.Fail(conns.ConnectFailed, fmt.Errorf("connect to %s: %w", up.Address, err))
		}
		return upstream{conn: conn}, nil
	}
	return upstream{}, conns.Fail(conns.ConnectFailed, fmt.Errorf("no way to go %s", up.Kind))
}

// decide asks route, and the controller if route does not know the destination.
// Without the controller's answer nobody knows whether plaintext is right.
func (l *Listener) decide(ctx context.Context, source *workload.Workload, dst netip.AddrPort) (route.Upstream, error) {
	request := route.Request{Source: source, Destination: dst}
	up, err := route.Decide(request, l.cfg.Snapshot(), rand.Uint64N)
	if err != nil || up.Kind != route.Ask {
		return up, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if _, err := l.cfg.Lookup(ctx, dst.Addr()); err != nil {
		return up, conns.Fail(conns.UnknownDestination, fmt.Errorf("ask the controller for %s: %w", dst.Addr(), err))
	}
	// If it was found, the snapshot now has it, and Asked changes nothing.
	request.Asked = true
	return route.Decide(request, l.cfg.Snapshot(), rand.Uint64N)
}
