package accept

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
)

// Trust says whose certificates are trusted now.
type Trust interface {
	// Trusts judges a peer that was accepted at some time.
	Trusts(peer tls.ConnectionState, accepted time.Time) error
	// TrustChanged is closed once the answers may be others.
	TrustChanged() <-chan struct{}
}

// peers are the live tunnels' other ends.
type peers struct {
	trust Trust

	mu sync.Mutex
	// Guarded by mu.
	live map[*peer]struct{}
}

// peer is one of them.
type peer struct {
	state    tls.ConnectionState
	accepted time.Time
	cut      context.CancelCauseFunc
}

func newPeers(trust Trust) *peers { return &peers{trust: trust, live: map[*peer]struct{}{}} }

// follow cuts a tunnel once its peer is no longer trusted, which may be so already:
// it is registered first and judged then.
func (p *peers) follow(state tls.ConnectionState, accepted time.Time, cut context.CancelCauseFunc) (forget func()) {
	followed := &peer{state, accepted, cut}
	p.mu.Lock()
	p.live[followed] = struct{}{}
	p.mu.Unlock()
	p.judge(followed)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.live, followed)
	}
}

func (p *peers) judge(one *peer) {
	if err := p.trust.Trusts(one.state, one.accepted); err != nil {
		one.cut(conns.Distrust(err))
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
