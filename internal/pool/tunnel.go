package pool

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/hbone"
)

// tunnel is one connection to a peer. Guarded by Pool.mu, but for what is fixed.
type tunnel struct {
	// Fixed.
	group  *group
	client *hbone.Client
	since  time.Time   // when its far end had proven itself
	proof  certs.Proof // how
	until  time.Time   // up to when both ends have, in this tunnel

	// retires: what both ends have shown in it is soon worth nothing.
	retires bool

	leases int
	used   time.Time // when it had the last lease
	// idle runs while there are no leases.
	idle *time.Timer
	// distrusted is why its far end is trusted no longer, and cuts is what is to be
	// called then, by stream.
	distrusted error
	cuts       map[*Stream]func(error)
}

// Stream is a stream on a lease.
type Stream struct {
	hbone.Stream
	pool   *Pool
	tunnel *tunnel
	once   sync.Once
}

// Close closes the stream and gives its lease back.
func (s *Stream) Close() error {
	err := s.Stream.Close()
	s.release()
	return err
}

// Reset resets the stream and gives its lease back.
func (s *Stream) Reset() error {
	err := s.Stream.Reset()
	s.release()
	return err
}

func (s *Stream) release() {
	s.once.Do(func() {
		s.pool.cfg.Metrics.streams.Dec()
		s.pool.mu.Lock()
		delete(s.tunnel.cuts, s)
		finished := s.pool.releaseLocked(s.tunnel)
		s.pool.mu.Unlock()
		if finished {
			s.tunnel.client.Close()
		}
	})
}

// hasRoomLocked goes by the group's limit, which the peer has told in an earlier
// tunnel: a new one assumes the usual until its peer's settings have come.
func (t *tunnel) hasRoomLocked() bool {
	return t.leases < t.group.limit && t.client.CanOpen() && !t.expired()
}

// ending tells whether a tunnel is for the connections that it has, and others only
// while there is no better one.
func (t *tunnel) ending() bool { return t.retires || t.expired() }

// expired tells whether a certificate of the tunnel's has ended: then it is for the
// connections that it has, as long as the ends are proven by another.
func (t *tunnel) expired() bool { return time.Now().Round(0).After(t.until) }

// leaseIfRoom leases a tunnel that may have filled up or ended meanwhile.
func (p *Pool) leaseIfRoom(t *tunnel) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !slices.Contains(t.group.tunnels, t) || !t.hasRoomLocked() {
		return false
	}
	t.leaseLocked()
	return true
}

func (t *tunnel) leaseLocked() {
	t.leases++
	if t.idle != nil {
		t.idle.Stop()
		t.idle = nil
	}
}

func (p *Pool) release(t *tunnel) {
	p.mu.Lock()
	finished := p.releaseLocked(t)
	p.mu.Unlock()
	if finished {
		t.client.Close()
	}
}

// releaseLocked gives one lease back and tells whether that was the last of a
// tunnel which takes no more.
func (p *Pool) releaseLocked(t *tunnel) (finished bool) {
	t.leases--
	t.used = time.Now()
	if t.leases > 0 {
		return false
	}
	if !t.client.CanOpen() {
		return true
	}
	p.idleLocked(t)
	return false
}

// idleLocked starts an unused tunnel's time.
func (p *Pool) idleLocked(t *tunnel) {
	t.idle = time.AfterFunc(p.idleFor, func() { p.closeIdle(t) })
}

func (p *Pool) closeIdle(t *tunnel) {
	p.mu.Lock()
	idle := t.leases == 0 && slices.Contains(t.group.tunnels, t)
	if idle {
		p.removeLocked(t) // nobody may lease it from here on
	}
	p.mu.Unlock()
	if idle {
		t.client.Close()
	}
}

// watch judges a tunnel's far end whenever trust changes, and removes the tunnel
// once it has ended, whoever ended it.
func (p *Pool) watch(t *tunnel) {
	p.judge(t)
	p.cfg.Metrics.tunnels.Dec()
	p.cfg.Metrics.ageSeconds.Observe(time.Since(t.since).Seconds())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cfg.Metrics.ends.WithLabelValues(t.endLocked()).Inc()
	p.removeLocked(t)
	if t.idle != nil {
		t.idle.Stop()
	}
}

func (t *tunnel) endLocked() string {
	if t.distrusted != nil {
		return "distrusted"
	}
	return endOf(t.client.Err())
}

// endOf is why a tunnel ended, as the metric has it.
func endOf(err error) string {
	switch {
	case err == nil:
		return "closed"
	case errors.Is(err, hbone.ErrPeerSilent):
		return "silent"
	}
	if fault := hbone.FaultOf(err); fault != "" {
		return string(fault)
	}
	return "failed"
}

func (p *Pool) removeLocked(t *tunnel) {
	i := slices.Index(t.group.tunnels, t)
	if i < 0 {
		return
	}
	t.group.tunnels = slices.Delete(t.group.tunnels, i, i+1)
	p.tunnels--
	p.dropGroupLocked(t.group)
}

func (p *Pool) dropGroupLocked(g *group) {
	if len(g.tunnels) == 0 && len(g.dials) == 0 && p.groups[g.key] == g {
		delete(p.groups, g.key)
	}
}
