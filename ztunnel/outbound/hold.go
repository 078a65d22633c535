package outbound

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// Held is a connection that the pod's application still waits for. The first answer counts.
type Held interface {
	// Ends are the application's and the original destination.
	Ends() (client, dst netip.AddrPort)
	// Pass has the connection come to the Listener.
	Pass() error
	// Refuse fails connect(2).
	Refuse(errno syscall.Errno) error
	// Leave has the application's kernel try again, or give up, in its own time.
	Leave()
}

const (
	// maxHeld of one pod at a time: more than that at once is no application that connects, and what is left waits a second.
	maxHeld = 8192
	// unclaimedTime is how long an upstream waits for its connection, which comes within microseconds, or, if the accept
	// queue was full, when the SYN is repeated after a second. Not at all if the application has given up meanwhile.
	unclaimedTime = 2 * time.Second
)

// errUnclaimed is why an upstream is closed that stood in vain.
var errUnclaimed = errors.New("the application did not wait for the connection")

// errOverloaded is why a connection waits, or is refused, while others are carried.
var errOverloaded = errors.New("the node's tunnel carries nearly as much as it can, and the pod has its share of that")

// ends tell the connections of a pod apart.
type ends struct{ client, dst netip.AddrPort }

// preparation is an upstream that is established before its connection is accepted.
type preparation struct {
	// Fixed.
	attempt *conns.Attempt
	cancel  context.CancelFunc
	done    chan struct{} // closed once upstream and err are set
	claimed chan struct{} // closed once its connection was accepted

	upstream upstream
	err      error // recorded already
}

// preparations are those that no accepted connection has claimed.
type preparations struct {
	running sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	byEnds  map[ends]*preparation
	live    map[ends]int // accepted connections
	stopped bool
}

// take establishes the upstream of a connection that is held. It does not wait.
func (l *Listener) take(held Held) {
	client, dst := held.Ends()
	key := ends{client, dst}
	p := &l.preparations
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.byEnds[key] != nil, p.live[key] > 0:
		// It was passed, but that was lost, or the SYN was repeated just before, or its sender is another by now: the kernel knows.
		go l.pass(held)
	case p.stopped, len(p.byEnds) >= maxHeld:
		held.Leave()
	default:
		attempt := l.attempt(client, dst)
		if !l.cfg.Share.Take(conns.FilesAtMost) {
			held.Leave() // there may be room by the time that it is tried again
			go l.cfg.Conns.Fail(*attempt, conns.Overloaded, errOverloaded)
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		prepared := &preparation{attempt: attempt, cancel: cancel, done: make(chan struct{}), claimed: make(chan struct{})}
		p.byEnds[key] = prepared
		p.running.Go(func() { l.prepare(ctx, key, prepared, held) })
	}
}

// prepare connects, answers the application, and sees to it that nothing is left if that does not wait any more.
func (l *Listener) prepare(ctx context.Context, key ends, p *preparation, held Held) {
	defer p.cancel()
	p.upstream, p.err = l.connect(ctx, p.attempt.Source.Workload, key.dst, p.attempt)
	if p.err == nil {
		l.settle(&p.upstream)
	} else {
		// First, so that a repeated SYN finds none that has failed.
		l.preparations.remove(key, p)
		l.cfg.Conns.Fail(*p.attempt, reasonOf(p.err), p.err)
	}
	close(p.done)
	if p.err != nil {
		l.cfg.Share.Give(conns.FilesAtMost)
		l.refuse(held, p.err)
		return
	}
	l.pass(held)
	late := time.NewTimer(unclaimedTime)
	defer late.Stop()
	select {
	case <-p.claimed:
		return
	case <-late.C:
	}
	if l.preparations.remove(key, p) {
		abandon(p.upstream)
		l.cfg.Share.Give(p.upstream.files)
		l.cfg.Conns.Fail(*p.attempt, conns.Unclaimed, errUnclaimed)
	}
}

func (l *Listener) pass(held Held) {
	if err := held.Pass(); err != nil {
		l.cfg.Logger.Debug("held connection not passed on", "error", err)
	}
}

// refuse answers with what the application would have been told without a mesh.
func (l *Listener) refuse(held Held, err error) {
	errno := errnoOf(err)
	if errno == 0 {
		held.Leave()
		return
	}
	if err := held.Refuse(errno); err != nil {
		l.cfg.Logger.Debug("held connection not refused", "error", err)
	}
}

// errnoOf is with what connect(2) is to fail; 0: with nothing, because nobody said anything, and the application's own
// patience counts. What the mesh itself does not let through is refused.
func errnoOf(err error) syscall.Errno {
	cause := conns.CauseOf(err)
	if status := (*hbone.StatusError)(nil); errors.As(err, &status) {
		cause = conns.CauseIn(status.Reason)
	}
	if errors.Is(err, context.Canceled) {
		return 0 // the process ends: the next one is asked again
	}
	switch reasonOf(err) {
	case conns.ConnectFailed, conns.TunnelFailed, conns.TunnelRefused:
		if cause == syscall.ETIMEDOUT {
			return 0
		}
		if cause != 0 {
			return cause
		}
	case conns.DeliveryFailed: // it is not on this node any more
		return syscall.EHOSTUNREACH
	}
	return syscall.ECONNREFUSED
}

// abandon closes an upstream that nobody needs.
func abandon(up upstream) {
	defer up.lease.End()
	relay.Reset(up.conn)
	if up.local != nil {
		up.local.End(conns.Unclaimed, errUnclaimed)
	}
}

// claim returns the preparation of an accepted connection, which then is its owner's alone. Nil: there is none, and the
// connection came at once. Either way the owner says with release when the connection is over.
func (p *preparations) claim(key ends) *preparation {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live[key]++
	prepared := p.byEnds[key]
	if prepared != nil {
		delete(p.byEnds, key)
		close(prepared.claimed)
	}
	return prepared
}

func (p *preparations) release(key ends) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live[key]--; p.live[key] == 0 {
		delete(p.live, key)
	}
}

// remove tells whether the preparation was there, unclaimed.
func (p *preparations) remove(key ends, which *preparation) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byEnds[key] != which {
		return false
	}
	delete(p.byEnds, key)
	return true
}

// stop prepares no more and gives up what is not claimed yet: the applications' kernels repeat their SYNs, to whoever listens
// then.
func (p *preparations) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for _, unclaimed := range p.byEnds {
		unclaimed.cancel()
	}
}
