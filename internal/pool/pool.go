// Package pool keeps the tunnels of one source pod and opens streams in them.
//
//	pool.go     Open: a lease on a tunnel, a stream in it, at most one retry
//	tunnel.go   a tunnel's leases, idleness and end
//	trust.go    tunnels whose far ends are no longer trusted, and the new ones by which
//	            both ends prove in time that they still are who they were
//	dial.go     one dial for all who wait for the same peer
//	metrics.go  ambit_pool_*
//
// Tunnels are striped: a connection gets one that carries no bulk, if there may
// be one, and where there are many connections there are several tunnels.
//
// A tunnel is shared by the connections of one pod to one address whose far end
// must be one of the same identities. It never is by those of two pods: its
// source address and its certificate are the pod's own.
//
// Invariants: no lock is held while dialing or opening; a stream is asked for a
// second time only if the peer is known not to have acted on it, and no more
// than that; a tunnel whose far end is no longer trusted is cut, with what is in it,
// and one of which a certificate has ended takes no more streams; every stream that
// Open returns gives its lease back when it is closed or reset; when Close returns,
// every goroutine of the pool has ended.
package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

const (
	// streamsPerTunnel is how many connections share a tunnel at most, peers
	// permitting: head-of-line blocking of one TCP connection, and what its
	// loss takes along, stay bounded.
	streamsPerTunnel = 100
	// streamsPerStripe is how many share one before another is made beside it, up
	// to maxStripes: then a lost packet stalls a part of them only.
	streamsPerStripe = 32
	maxStripes       = 4
	// busyRate is the rate, in bytes per second, from which on a tunnel's bulk is
	// felt by whoever shares it: it is not given to new connections while
	// maxBusyStripes have not been made.
	busyRate       = 8 << 20
	maxBusyStripes = 16
	// stripePause is how long no further stripe is tried after one failed, while
	// there is a tunnel that does.
	stripePause = time.Second
	// tunnelsPerPool bounds what one pod can have open: 100,000 connections'
	// worth, more than a pod has ephemeral ports.
	tunnelsPerPool = 1000
	// idleFor is how long an unused tunnel is kept: longer than the pauses of
	// periodic work, for which a handshake would be the larger part.
	idleFor = 5 * time.Minute
	// dialTimeout covers TCP and TLS.
	dialTimeout = 10 * time.Second
)

var (
	// ErrClosed is returned by Open once the pool is closed.
	ErrClosed = errors.New("pool is closed")
	// ErrFull is returned by Open when no more tunnels may be made.
	ErrFull = errors.New("too many tunnels")
)

// Target is a tunnel's far end and who it has to be.
type Target struct {
	Address    netip.AddrPort
	Identities []spiffe.ID
}

// Dial establishes the connection of a tunnel: TCP from the pod's own address,
// TLS, and the far end proven to be one of target.Identities.
type Dial func(ctx context.Context, target Target) (net.Conn, error)

// Trust says whether a tunnel's far end is still to be trusted.
type Trust interface {
	// Proof is what both ends of what Dial returned have shown.
	Proof(conn net.Conn) certs.Proof
	// Trusts judges the far end of a tunnel by the handshake that it began with, and
	// by the latest with it. again is when to ask again, at the latest.
	Trusts(own, latest certs.Proof) (again time.Duration, err error)
	// Retires tells whether what was shown is soon worth nothing, so that both ends
	// have to prove themselves anew.
	Retires(certs.Proof) bool
	// TrustChanged is closed once the answers may be others.
	TrustChanged() <-chan struct{}
}

// Config of a Pool. All fields are required.
type Config struct {
	Dial    Dial
	Trust   Trust
	Metrics *Metrics
	Logger  *slog.Logger
}

// Pool holds the tunnels of one pod.
type Pool struct {
	// Fixed after New.
	cfg       Config
	ctx       context.Context
	cancel    context.CancelFunc
	goroutine sync.WaitGroup
	idleFor   time.Duration

	mu sync.Mutex
	// Guarded by mu.
	groups  map[key]*group
	tunnels int // established or being dialed
	closed  bool
}

// key is what a tunnel may be shared by: the address, and the identities sorted.
type key struct {
	address    netip.AddrPort
	identities string
}

func keyOf(t Target) key {
	ids := make([]string, len(t.Identities))
	for i, id := range t.Identities {
		ids[i] = id.String()
	}
	slices.Sort(ids)
	return key{t.Address, strings.Join(slices.Compact(ids), " ")}
}

// group is the tunnels of one key. Guarded by Pool.mu.
type group struct {
	key     key
	target  Target
	tunnels []*tunnel
	dials   []*dial
	// limit is how many streams a tunnel takes: the peer's limit, once seen.
	limit int
	// failedAt is when a dial failed last.
	failedAt time.Time
	// latest is how both ends have proven themselves, by the latest handshake that
	// lasts longer than those before.
	latest certs.Proof
	// futile is how many dials in a row brought nothing that lasts.
	futile int
}

// New makes a pool without tunnels.
func New(cfg Config) *Pool {
	p := &Pool{cfg: cfg, idleFor: idleFor, groups: map[key]*group{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Open opens a stream in a tunnel to target, which it dials if none has room.
// Errors are those of Dial and of [hbone.Client.Open], ErrClosed and ErrFull.
func (p *Pool) Open(ctx context.Context, target Target, r hbone.Request) (*Stream, error) {
	stream, first, err := p.open(ctx, target, r, nil)
	if errors.Is(err, hbone.ErrNotProcessed) && first != nil {
		p.cfg.Metrics.retries.Inc()
		stream, _, err = p.open(ctx, target, r, first)
	}
	return stream, err
}

// open tries once, in another tunnel than avoid. It returns the tunnel it tried.
func (p *Pool) open(ctx context.Context, target Target, r hbone.Request, avoid *tunnel) (*Stream, *tunnel, error) {
	t, err := p.lease(ctx, target, avoid)
	if err != nil {
		return nil, nil, err
	}
	stream, err := t.client.Open(ctx, r)
	if err != nil {
		err = p.explain(t, err)
		p.release(t)
		return nil, t, fmt.Errorf("open stream to %s through %s: %w", r.Authority, target.Address, err)
	}
	p.cfg.Metrics.streams.Inc()
	return &Stream{Stream: stream, pool: p, tunnel: t}, t, nil
}

// lease reserves room for one stream.
func (p *Pool) lease(ctx context.Context, target Target, avoid *tunnel) (*tunnel, error) {
	k := keyOf(target)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	g := p.groups[k]
	if g == nil {
		g = &group{key: k, target: target, limit: streamsPerTunnel}
		p.groups[k] = g
	}
	t, busy := g.chooseLocked(avoid)
	if t != nil && !busy {
		t.leaseLocked()
		if t.leases > streamsPerStripe && g.mayStripeLocked(maxStripes) && len(g.dials) == 0 {
			p.dialLocked(g, target, 0) // for those who come later
		}
		p.mu.Unlock()
		return t, nil
	}
	if t != nil && !g.mayStripeLocked(maxBusyStripes) {
		t.leaseLocked()
		p.mu.Unlock()
		return t, nil
	}
	d, err := p.joinDialLocked(g, target)
	p.mu.Unlock()
	if err == nil {
		start := time.Now()
		var dialed *tunnel
		dialed, err = p.await(ctx, g, d)
		p.cfg.Metrics.waitSeconds.Observe(time.Since(start).Seconds())
		if err == nil {
			return dialed, nil
		}
	}
	if t != nil && p.leaseIfRoom(t) {
		return t, nil // better beside bulk than not at all
	}
	return nil, err
}

// chooseLocked returns the tunnel with the most room, one that is not busy if
// there is one; nil if none has room.
func (g *group) chooseLocked(avoid *tunnel) (best *tunnel, busy bool) {
	for _, t := range g.tunnels {
		// What one tunnel to the peer allows, the next one will too, known now
		// so that no more wait for a dial than there will be room for.
		g.limit = max(1, min(g.limit, t.client.Limit()))
		if t == avoid || !t.hasRoomLocked() {
			continue
		}
		if best != nil && t.retires != best.retires { // better in one that is there to stay
			if best.retires {
				best, busy = t, t.leases > 0 && t.client.Rate() >= busyRate
			}
			continue
		}
		tBusy := t.leases > 0 && t.client.Rate() >= busyRate
		if best == nil || busy && !tBusy || busy == tBusy && t.leases < best.leases {
			best, busy = t, tBusy
		}
	}
	return best, busy
}

// mayStripeLocked tells whether there are fewer tunnels than most, and the last
// dial did not fail just now.
func (g *group) mayStripeLocked(most int) bool {
	tunnels := len(g.dials)
	for _, t := range g.tunnels {
		if !t.ending() {
			tunnels++
		}
	}
	return tunnels < most && time.Since(g.failedAt) >= stripePause
}

// Close opens no more tunnels and streams, lets the open streams end until ctx
// does, and then ends them.
func (p *Pool) Close(ctx context.Context) {
	p.mu.Lock()
	p.closed = true
	var tunnels []*tunnel
	for _, g := range p.groups {
		tunnels = append(tunnels, g.tunnels...)
	}
	p.mu.Unlock()
	p.cancel()
	var wg sync.WaitGroup
	for _, t := range tunnels {
		wg.Go(func() {
			if err := t.client.Shutdown(ctx); err != nil {
				t.client.Close()
			}
		})
	}
	wg.Wait()
	p.goroutine.Wait()
}
