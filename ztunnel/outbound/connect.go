package outbound

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// lookupTimeout is how long a connection to an unknown address waits for the
// controller's word: many times a round trip to it, and short enough for the
// patience of what connects to a pod that has just started.
const lookupTimeout = 2 * time.Second

// captureTimeout is how long a connection waits for its destination, which refuses plaintext, to be captured: many times what a
// node needs for a pod, and short beside the patience of applications. What takes longer does not come by waiting.
const captureTimeout = 5 * time.Second

const (
	// maxEndpoints of a service are tried for one connection: enough for a
	// rollout or a node that went away, not for a service that is down.
	maxEndpoints = 3
	// endpointTimeout bounds one of them as long as others may follow: what is
	// there answers within milliseconds.
	endpointTimeout = 3 * time.Second
)

// upstream is the established far side of a connection. Whoever has it closes
// conn and ends the lease.
type upstream struct {
	conn  relay.Conn
	lease *endpoints.Lease
	// tunnel is set if conn is a stream in one.
	tunnel *pool.Stream
	// local is set if the far side is a pod of this node.
	local LocalConn
	// files is what it holds of the pod's share.
	files int
}

// connect decides and establishes; attempt then says what was decided. No byte
// of the application's has been taken yet, so where one endpoint of a service
// cannot be reached, another one is tried.
func (l *Listener) connect(cut context.Context, source *workload.Workload, dst netip.AddrPort, attempt *conns.Attempt) (upstream, error) {
	ctx, cancel := context.WithTimeout(cut, setupTimeout)
	defer cancel()
	request := route.Request{Source: source, Destination: dst, Endpoints: l.cfg.Endpoints}
	var failed error
	for {
		up, lease, err := l.choose(ctx, &request)
		if err != nil {
			if failed != nil {
				err = failed // without another endpoint, the first one's failure counts
			}
			return upstream{}, err
		}
		describe(attempt, up)
		if err := l.leave(ctx, attempt); err != nil {
			lease.End()
			return upstream{}, err
		}
		conn, err := l.establish(ctx, source, up, attempt, len(request.Avoid)+1 < maxEndpoints)
		if err == nil {
			lease.Established()
			conn.lease = lease
			return conn, nil
		}
		l.failed(ctx, lease, request, up, err)
		if failed == nil {
			failed = err
		}
		if !anotherMay(up, err) || len(request.Avoid)+1 == maxEndpoints || ctx.Err() != nil {
			return upstream{}, err
		}
		l.cfg.Conns.Retried(conns.ReasonOf(err))
		request.Avoid = append(request.Avoid, up.Workload.UID)
	}
}

// anotherMay tells whether another endpoint may do better: not where it is our
// own certificate that is missing, or policy that does not admit us.
func anotherMay(up route.Upstream, err error) bool {
	if !up.Chosen() || up.Workload == nil {
		return false
	}
	switch conns.ReasonOf(err) {
	case conns.ConnectFailed, conns.TunnelFailed, conns.TLSFailed, conns.Revoked, conns.TunnelRefused, conns.DeliveryFailed:
		return true
	case conns.Drained, conns.UnknownTarget, conns.BadTarget, conns.PolicyMissing:
		// A pod of this node said so; that of another one would refuse the tunnel.
		return up.Kind == route.Local
	}
	return false
}

// establish goes the way that was decided. more: other endpoints may follow.
func (l *Listener) establish(ctx context.Context, source *workload.Workload, up route.Upstream, attempt *conns.Attempt, more bool) (upstream, error) {
	if more && up.Chosen() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, endpointTimeout)
		defer cancel()
	}
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
func (l *Listener) decide(ctx context.Context, request *route.Request) (route.Upstream, error) {
	up, err := l.await(ctx, request)
	if err != nil || up.Kind != route.Ask {
		return up, err
	}
	asking, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if _, err := l.cfg.Lookup(asking, up.Address.Addr()); err != nil {
		return up, conns.Fail(conns.UnknownDestination, fmt.Errorf("ask the controller for %s: %w", up.Address.Addr(), err))
	}
	// If it was found, the snapshot now has it, and Asked changes nothing.
	request.Asked = true
	return l.await(ctx, request)
}

// await asks route, again and again as long as the answer is a refusal that may pass.
func (l *Listener) await(ctx context.Context, request *route.Request) (route.Upstream, error) {
	var late <-chan time.Time
	for {
		snapshot := l.cfg.Snapshot()
		up, err := route.Decide(*request, snapshot, rand.Uint64N)
		if refusal := (*route.Refusal)(nil); !errors.As(err, &refusal) || !refusal.Passes() {
			return up, err
		}
		if late == nil {
			late = time.After(captureTimeout)
		}
		select {
		case <-snapshot.Changed():
		case <-late:
			return up, err
		case <-ctx.Done():
			return up, errors.Join(err, ctx.Err())
		}
	}
}
