package accept

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Trust says whose certificates are trusted now.
type Trust interface {
	// Trusts judges the peer of a tunnel by the handshake that it began with, and the
	// latest of the same peer. again is when to ask again, at the latest.
	Trusts(own, latest certs.Proof) (again time.Duration, err error)
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
	own certs.Proof
	who proven
	cut context.CancelCauseFunc
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
	latest  certs.Proof
	tunnels int
}

func newPeers(trust Trust) *peers {
	return &peers{trust: trust, live: map[*peer]struct{}{}, proofs: map[proven]*proof{}}
}

// follow cuts a tunnel once its peer is no longer trusted, which may be so already:
// it is registered first and judged then.
func (p *peers) follow(shown certs.Proof, who proven, cut context.CancelCauseFunc) (forget func()) {
	followed := &peer{own: shown, who: who, cut: cut}
	p.mu.Lock()
	p.live[followed] = struct{}{}
	known := p.proofs[who]
	if known == nil {
		known = &proof{latest: shown}
		p.proofs[who] = known
	}
	known.tunnels++
	if p.outlasts(shown, known.latest) {
		known.latest = shown
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
		if known.tunnels--; known.tunnels == 0 {
			delete(p.proofs, who)
		}
	}
}

// outlasts tells whether a handshake is good for longer than an earlier one.
func (p *peers) outlasts(shown, earlier certs.Proof) bool {
	if !shown.State.PeerCertificates[0].NotAfter.Before(earlier.State.PeerCertificates[0].NotAfter) {
		return true
	}
	_, err := p.trust.Trusts(earlier, earlier)
	return err != nil
}

// judge one now, and again when its certificate ends.
func (p *peers) judge(one *peer) {
	p.mu.Lock()
	_, lives := p.live[one]
	var latest certs.Proof
	if lives {
		latest = p.proofs[one.who].latest
	}
	p.mu.Unlock()
	if !lives {
		return
	}
	again, err := p.trust.Trusts(one.own, latest)
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
