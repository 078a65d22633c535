package pool

import (
	"maps"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
)

const (
	// renewAfter is the part of the time for which both ends have proven themselves
	// after which a tunnel with connections has another one made beside it, in which
	// they do so again: both have new certificates by then, if they can have any, and
	// what is left is for a peer that cannot be reached now.
	renewAfter = 3.0 / 4
	// renewTries are made in what is left, at equal pauses, of a second at least.
	renewTries = 12
	// retiresPause is how soon both ends are asked again to prove themselves by a root
	// that is not about to go, once they may have certificates below another: sooner
	// than the controller hears that they have.
	retiresPause = time.Second
	// A peer that has no other after retiresTries is asked every retiresPatience.
	retiresTries    = 30
	retiresPatience = 30 * time.Second
	// usedLately: connections come and go in it, and would find it gone.
	usedLately = 10 * time.Second
)

// judge asks again whether a tunnel's far end is trusted, whenever that may have
// changed, and has both ends prove themselves anew in time, until the tunnel has ended.
func (p *Pool) judge(t *tunnel) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := p.cfg.Trust.TrustChanged() // before it is judged: nothing is missed
		renew, latest := p.renew(t)
		again, err := p.cfg.Trust.Trusts(t.proof, latest)
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
// that would be cut otherwise. It returns when to look again, and the latest proof.
func (p *Pool) renew(t *tunnel) (again time.Duration, latest certs.Proof) {
	p.mu.Lock()
	latest = t.group.latest
	p.mu.Unlock()
	own, retires := p.cfg.Trust.Retires(t.proof), p.cfg.Trust.Retires(latest)
	now, at, until := time.Now().Round(0), latest.At.Round(0), certs.Until(latest.State)
	left := until.Sub(at)
	wait := at.Add(time.Duration(renewAfter * float64(left))).Sub(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	t.retires = own
	if wait > 0 && !retires {
		return wait + time.Millisecond, latest
	}
	if len(t.group.dials) == 0 && (t.leases > 0 || retires && time.Since(t.used) < usedLately) && !p.closed && p.tunnels < tunnelsPerPool {
		p.dialLocked(t.group, t.group.target, 0)
	}
	if retires {
		if t.group.futile > retiresTries {
			return retiresPatience, latest
		}
		return retiresPause, latest
	}
	return max(time.Second, time.Duration((1-renewAfter)*float64(left)/renewTries)), latest
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
