package exchange

import (
	"context"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// Run judges requests under way whenever the snapshot has changed, until ctx ends: some
// live for days.
func (e *Engine) Run(ctx context.Context) error {
	for {
		now := e.cfg.Snapshot()
		for _, x := range e.underWay() {
			x.rejudge(now)
		}
		select {
		case <-now.Changed():
		case <-ctx.Done():
			e.mirroring.Wait()
			return nil
		}
	}
}

func (e *Engine) underWay() (all []*exchange) {
	e.mu.Lock()
	clients := make([]*client, 0, len(e.clients))
	for c := range e.clients {
		clients = append(clients, c)
	}
	e.mu.Unlock()
	for _, c := range clients {
		c.mu.Lock()
		for x := range c.running {
			all = append(all, x)
		}
		c.mu.Unlock()
	}
	return all
}

// follow has a request judged again until forget, from when it has an endpoint: cut
// ends what was begun there. It is registered first and judged then, while Run takes
// the snapshot first and looks at who is registered then: no change is missed.
func (x *exchange) follow(cut func()) (forget func()) {
	c := x.client
	c.mu.Lock()
	x.cut = cut
	c.running[x] = struct{}{}
	c.mu.Unlock()
	if now := c.engine.cfg.Snapshot(); now != x.snapshot {
		x.rejudge(now)
	}
	return func() {
		c.mu.Lock()
		delete(c.running, x)
		x.cut = nil
		c.mu.Unlock()
	}
}

// rejudge cuts a request that would not be let through any more.
func (x *exchange) rejudge(now *workload.Snapshot) {
	c := x.client
	to, err := target.Resolve(now, c.engine.cfg.Self(), c.session.Destination)
	if err == nil {
		err = c.engine.cfg.Policies.Request(now, to, c.session.Client, x.request, nil, netip.AddrPort{})
	}
	if err == nil {
		err = c.engine.cfg.Policies.Request(now, to, c.session.Client, x.request, x.endpoint, x.at)
	}
	if err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.cut != nil && x.revoked == nil {
		x.revoked = conns.Fail(conns.ReasonOf(err), err)
		x.cut()
	}
}

// revocation is why the request was cut, if it was.
func (x *exchange) revocation() *conns.Failure {
	x.client.mu.Lock()
	defer x.client.mu.Unlock()
	return x.revoked
}
