package pool

import "maps"

// judge asks again whether a tunnel's far end is trusted, whenever that may have
// changed, until the tunnel has ended.
func (p *Pool) judge(t *tunnel) {
	for {
		changed := p.cfg.Trust.TrustChanged() // before it is judged: nothing is missed
		if err := p.cfg.Trust.Trusts(t.conn, t.since); err != nil {
			p.cut(t, err)
		}
		select {
		case <-t.client.Done():
			return
		case <-changed:
		}
	}
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
