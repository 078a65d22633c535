package pool

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/hbone"
)

// dial is one attempt to establish a tunnel, for all who wait for it.
type dial struct {
	// done is closed after tunnel or err was set.
	done   chan struct{}
	tunnel *tunnel
	err    error
	// waiting is guarded by Pool.mu: how many will want a lease.
	waiting int
}

// joinDialLocked waits along with a dial that is under way, or starts one.
func (p *Pool) joinDialLocked(g *group, target Target) (*dial, error) {
	room := g.limit
	if g.mayStripeLocked(maxStripes) {
		room = min(room, streamsPerStripe)
	}
	for _, d := range g.dials {
		if d.waiting < room {
			d.waiting++
			return d, nil
		}
	}
	if p.tunnels >= tunnelsPerPool {
		p.dropGroupLocked(g)
		return nil, ErrFull
	}
	return p.dialLocked(g, target, 1), nil
}

// dialLocked starts a dial for as many as wait.
func (p *Pool) dialLocked(g *group, target Target, waiting int) *dial {
	d := &dial{done: make(chan struct{}), waiting: waiting}
	g.dials = append(g.dials, d)
	p.tunnels++
	p.goroutine.Go(func() { p.dial(g, d, target) })
	return d
}

// dial belongs to no one who waits: it goes on if they give up.
func (p *Pool) dial(g *group, d *dial, target Target) {
	client, conn, err := p.connect(target)
	var proof certs.Proof
	var until time.Time
	var retires bool
	if err == nil {
		proof = p.cfg.Trust.Proof(conn)
		until, retires = certs.Until(proof.State), p.cfg.Trust.Retires(proof)
	}

	p.mu.Lock()
	g.dials = slices.DeleteFunc(g.dials, func(other *dial) bool { return other == d })
	if err == nil && p.closed {
		err = ErrClosed
	}
	if err == nil && retires && d.waiting == 0 {
		err = errRetires // it was to be one that does not
	}
	if retires {
		g.futile++
	} else if err == nil {
		g.futile = 0
	}
	if err == nil {
		t := &tunnel{group: g, client: client, leases: d.waiting, since: time.Now(), proof: proof, until: until, retires: retires}
		if g.latest.At.IsZero() || t.until.After(certs.Until(g.latest.State)) || !retires {
			g.latest = proof
		}
		if t.leases == 0 {
			p.idleLocked(t)
		}
		g.tunnels = append(g.tunnels, t)
		p.groups[g.key] = g
		d.tunnel = t
		p.cfg.Metrics.tunnels.Inc()
		p.goroutine.Go(func() { p.watch(t) })
	} else {
		d.err, g.failedAt = err, time.Now()
		p.tunnels--
		p.dropGroupLocked(g)
	}
	close(d.done)
	p.mu.Unlock()

	if err != nil && client != nil {
		client.Close()
	}
}

// errRetires: who dialed for something better has got nothing better.
var errRetires = errors.New("what both ends have shown in it is soon worth nothing")

// connect returns a tunnel, and what it is over.
func (p *Pool) connect(target Target) (client *hbone.Client, conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	start := time.Now()
	conn, err = p.cfg.Dial(ctx, target)
	if err != nil {
		p.cfg.Metrics.dials.WithLabelValues("failed").Inc()
		p.cfg.Logger.Debug("tunnel not established", "peer", target.Address, "error", err)
		return nil, nil, err
	}
	client, err = hbone.NewClient(conn, hbone.Options{})
	if err != nil {
		conn.Close()
		p.cfg.Metrics.dials.WithLabelValues("failed").Inc()
		return nil, nil, err
	}
	p.cfg.Metrics.dials.WithLabelValues("established").Inc()
	p.cfg.Metrics.dialSeconds.Observe(time.Since(start).Seconds())
	p.cfg.Logger.Debug("tunnel established", "peer", target.Address)
	return client, conn, nil
}

// await returns the tunnel that d established, on which the caller has a lease.
func (p *Pool) await(ctx context.Context, g *group, d *dial) (*tunnel, error) {
	select {
	case <-d.done:
		return d.tunnel, d.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	d.waiting--
	t := d.tunnel
	p.mu.Unlock()
	if t != nil { // it was done in the meantime
		p.release(t)
	}
	return nil, context.Cause(ctx)
}
