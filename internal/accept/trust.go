package accept

import (
	"context"
	"crypto/tls"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Trust says whose certificates are trusted now.
type Trust interface {
	// Trusts judges a peer that was accepted at some time, and that has proven itself
	// up to another. again is when to ask again, at the latest.
	Trusts(peer tls.ConnectionState, accepted, until time.Time) (again time.Duration, err error)
	// TrustChanged is closed once the answers may be others.
	TrustChanged() <-chan struct{}
}

// peers are the live tunnels' other ends.
type peers struct {
	trust Trust

	mu sync.Mutex
	// Guarded by mu.
	live   map[*peer]struct{}
	proofs map[proven]*proof
}

// peer is one of them.
type peer struct {
	state    tls.ConnectionState
	who      proven
	accepted time.Time
	cut      context.CancelCauseFunc
	// again judges it; guarded by peers.mu.
	again *time.Timer
}

// proven is who has shown a certificate: the identity in it, and from where.
type proven struct {
	addr netip.Addr
	id   spiffe.ID
}

// proof is what the tunnels of one peer have shown together: who opens another
// tunnel in time, with another certificate, keeps those that stand.
type proof struct {
	until   time.Time
	tunnels int
}

func newPeers(trust Trust) *peers {
	return &peers{trust: trust, live: map[*peer]struct{}{}, proofs: map[proven]*proof{}}
}

// follow cuts a tunnel once its peer is no longer trusted, which may be so already:
// it is registered first and judged then.
func (p *peers) follow(state tls.ConnectionState, who proven, accepted time.Time, cut context.CancelCauseFunc) (forget func()) {
	followed := &peer{state: state, who: who, accepted: accepted, cut: cut}
	p.mu.Lock()
	p.live[followed] = struct{}{}
	shown := p.proofs[who]
	if shown == nil {
		shown = &proof{}
		p.proofs[who] = shown
	}
	shown.tunnels++
	if until := state.PeerCertificates[0].NotAfter; until.After(shown.until) {
		shown.until = until
	}
	p.mu.Unlock()
	p.judge(followed)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.live, followed)
		if followed.again != nil {
			followed.again.Stop()
		}
		if shown.tunnels--; shown.tunnels == 0 {
			delete(p.proofs, who)
		}
	}
}

// judge one now, and again when its certificate ends.
func (p *peers) judge(one *peer) {
	p.mu.Lock()
	_, lives := p.live[one]
	var until time.Time
	if lives {
		until = p.proofs[one.who].until
	}
	p.mu.Unlock()
	if !lives {
		return
	}
	again, err := p.trust.Trusts(one.state, one.accepted, until)
	if err != nil {
		one.cut(conns.Distrust(err))
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, lives = p.live[one]; !lives {
		return
	}
	if one.again == nil {
		one.again = time.AfterFunc(again, func() { p.judge(one) })
	} else {
		one.again.Reset(again)
	}
}

// run judges all of them whenever trust has changed, until ctx ends.
func (p *peers) run(ctx context.Context) {
	for {
		changed := p.trust.TrustChanged()
		p.mu.Lock()
		all := make([]*peer, 0, len(p.live))
		for one := range p.live {
			all = append(all, one)
		}
		p.mu.Unlock()
		for _, one := range all {
			p.judge(one)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
