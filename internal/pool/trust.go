package pool

import (
	"maps"
	"time"
)

const (
	// renewAfter is the part of the time for which both ends have proven themselves
	// after which a tunnel with connections has another one made beside it, in which
	// they do so again: both have new certificates by then, if they can have any, and
	// what is left is for a peer that cannot be reached now.
	renewAfter = 3.0 / 4
	// renewTries are made in what is left, at equal pauses, of a second at least.
	renewTries = 12
)

// judge asks again whether a tunnel's far end is trusted, whenever that may have
// changed, and has both ends prove themselves anew in time, until the tunnel has ended.
func (p *Pool) judge(t *tunnel) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := p.cfg.Trust.TrustChanged() // before it is judged: nothing is missed
		renew, proven := p.renew(t)
		again, err := p.cfg.Trust.Trusts(t.conn, t.since, proven)
		if err != nil {
			p.cut(t, err)
		} else {
			timer.Reset(min(again, renew))
		}
		select {
		case <-t.client.Done():
			return
		case <-changed:
		case <-timer.C:
		}
	}
}

// renew has another tunnel dialed if it is time for that, and there are connections
// that would be cut otherwise. It returns when to look again, and up to when the ends
// are proven.
func (p *Pool) renew(t *tunnel) (again time.Duration, proven time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g, now := t.group, time.Now().Round(0)
	left := g.proven.Sub(g.provenAt.Round(0))
	due := g.provenAt.Round(0).Add(time.Duration(renewAfter * float64(left)))
	if wait := due.Sub(now); wait > 0 {
		return wait + time.Millisecond, g.proven
	}
	pause := max(time.Second, time.Duration((1-renewAfter)*float64(left)/renewTries))
	if t.leases > 0 && len(g.dials) == 0 && !p.closed && p.tunnels < tunnelsPerPool {
		p.dialLocked(g, g.target, 0)
	}
	return pause, g.proven
}

// cut ends a tunnel whose far end is trusted no longer: nobody leases it from here
// on, and what is in it hears the reason before it ends.
func (p *Pool) cut(t *tunnel, err error) {
	p.mu.Lock()
	if t.distrusted != nil {
		p.mu.Unlock()
		return
	}
	t.distrusted = err
	cuts := maps.Clone(t.cuts)
	p.removeLocked(t)
	p.mu.Unlock()
	p.cfg.Logger.Warn("tunnel cut", "peer", t.group.key.address, "connections", len(cuts), "error", err)
	for _, cut := range cuts {
		cut(err)
	}
	t.client.Close()
}

// OnDistrust has cut called once the tunnel's far end is trusted no longer, which
// may be so already, and before the stream ends of it.
func (s *Stream) OnDistrust(cut func(error)) {
	s.pool.mu.Lock()
	err := s.tunnel.distrusted
	if err == nil {
		if s.tunnel.cuts == nil {
			s.tunnel.cuts = map[*Stream]func(error){}
		}
		s.tunnel.cuts[s] = cut
	}
	s.pool.mu.Unlock()
	if err != nil {
		cut(err)
	}
}

// explain says why a stream was not opened: because the tunnel was cut, if it was.
func (p *Pool) explain(t *tunnel, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.distrusted != nil {
		return t.distrusted
	}
	return err
}
