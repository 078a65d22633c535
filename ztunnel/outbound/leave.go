package outbound

import (
	"context"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
)

// leave asks policy whether a connection may go where it was decided to, if that is outside the mesh. A policy that has not come
// is waited for as long as the controller's word about an address.
func (l *Listener) leave(ctx context.Context, attempt *conns.Attempt) error {
	if !attempt.Outside() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	flow := l.cfg.Egress.Flow(attempt.Destination.Addr, nil)
	attempt.Names = flow.Names
	for {
		snapshot := l.cfg.Snapshot()
		if l.cfg.Egress.Rules(snapshot).Decide(flow).Outcome != egress.Unknown {
			return failureOf(l.cfg.Egress.Open(snapshot, flow), flow)
		}
		select {
		case <-snapshot.Changed():
		case <-ctx.Done():
			return failureOf(l.cfg.Egress.Open(snapshot, flow), flow)
		}
	}
}

// mayStay asks policy again about a connection that stands, and is among the live ones by now: what changed until then nobody
// else noticed.
func (l *Listener) mayStay(attempt *conns.Attempt) error {
	if !attempt.Outside() {
		return nil
	}
	flow := l.cfg.Egress.Flow(attempt.Destination.Addr, attempt.Names)
	return failureOf(l.cfg.Egress.Rules(l.cfg.Snapshot()).Decide(flow), flow)
}

func failureOf(d egress.Decision, flow egress.Flow) error {
	switch d.Outcome {
	case egress.Allowed:
		return nil
	case egress.Unknown:
		return conns.Fail(conns.EgressUnknown, d.Error(flow))
	}
	return conns.Fail(conns.EgressDenied, d.Error(flow))
}
