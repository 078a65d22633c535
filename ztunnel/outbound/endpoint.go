package outbound

import (
	"context"
	"errors"
	"slices"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// choose decides, and counts the connection at the endpoint that it is for. The
// lease is nil if it is for none.
func (l *Listener) choose(ctx context.Context, request *route.Request) (route.Upstream, *endpoints.Lease, error) {
	for round := 1; ; round++ {
		up, err := l.decide(ctx, request)
		if err != nil || up.Workload == nil {
			return up, nil, err
		}
		// Who addresses a pod itself wants that one and no other.
		regardless := !up.Chosen() || up.Panic || round == maxEndpoints
		lease, ok := l.cfg.Endpoints.Connect(endpoints.Key{UID: up.Workload.UID, Target: up.Endpoint()}, regardless)
		if !ok {
			continue // it was ejected in this moment, or somebody is trying it already
		}
		if up.Chosen() {
			l.cfg.Endpoints.Picked(up.Nearness.String(), up.Panic)
		}
		return up, lease, nil
	}
}

// failed gives back the lease of what could not be established. The endpoint is
// blamed if it was a service's, which has others, and the fault may be its own:
// it was not if another one would have failed as well, or if we gave up.
func (l *Listener) failed(ctx context.Context, lease *endpoints.Lease, request route.Request, up route.Upstream, err error) {
	if !anotherMay(up, err) || ours(err) || errors.Is(ctx.Err(), context.Canceled) {
		lease.End()
		return
	}
	lease.Failed(string(conns.ReasonOf(err)), func() (peers []endpoints.Key) {
		for uid, target := range route.Peers(request, up, l.cfg.Snapshot()) {
			peers = append(peers, endpoints.Key{UID: uid, Target: target})
		}
		return peers
	})
}

// ours tells that what failed never got as far as the endpoint: the pod has no
// route, may not, or there is no more room for connections.
func ours(err error) bool {
	return slices.ContainsFunc([]error{
		pool.ErrFull, pool.ErrClosed,
		syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EPERM, syscall.EACCES,
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
	}, func(known error) bool { return errors.Is(err, known) })
}
