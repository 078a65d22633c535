package inbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/listen"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// Local admits a connection that source, a captured pod of this node, opens
// from client to dst, and connects the application. Both identities are known
// here, so there is no tunnel; everything else is as if there were one.
func (l *Listener) Local(ctx context.Context, source *workload.Workload, client, dst netip.AddrPort) (*LocalConn, error) {
	attempt := conns.Attempt{
		Direction:   conns.Inbound,
		Transport:   conns.Local,
		Source:      conns.Peer{Addr: client, Identity: source.Identity, Workload: source},
		Destination: conns.Peer{Addr: dst},
		Started:     time.Now(),
	}
	conn, err := l.admitLocal(ctx, &attempt)
	if err != nil {
		if !errors.Is(err, errRevoked) {
			l.cfg.Conns.Fail(attempt, conns.ReasonOf(err), err)
		}
		return nil, err
	}
	return conn, nil
}

// errRevoked is why a connection is refused that was admitted, and no longer was by
// the time it stood. Its record has ended with the reason.
var errRevoked = conns.Fail(conns.PolicyDenied, errors.New("no longer admitted"))

func (l *Listener) admitLocal(ctx context.Context, attempt *conns.Attempt) (*LocalConn, error) {
	dst := attempt.Destination.Addr
	if target := l.cfg.Target(); target != nil && !slices.Contains(target.Addresses, dst.Addr()) {
		return nil, conns.Fail(conns.BadTarget, fmt.Errorf("%s is not an address of %s", dst.Addr(), target.UID))
	}
	if !l.locals.enter() {
		return nil, conns.Fail(conns.Drained, errors.New("the destination's side has stopped"))
	}
	app, err := l.admit(ctx, attempt)
	if err != nil {
		l.locals.leave()
		return nil, err
	}
	record := l.cfg.Conns.Open(l.locals.cut, *attempt)
	conn := &LocalConn{app: app, locals: &l.locals, record: record, forget: l.cfg.Policy.Follow(record)}
	if record.Context().Err() != nil {
		conn.End(conns.Drained, context.Cause(record.Context()))
		return nil, errRevoked
	}
	return conn, nil
}

// LocalConn is a connection to this pod's application that another pod's
// outbound side carries, and the record of it.
type LocalConn struct {
	app    *appConn
	locals *locals
	record *conns.Conn
	forget func() // of policy
	once   sync.Once
}

// TCP is the application's socket. Whoever closes it says so with End.
func (c *LocalConn) TCP() *net.TCPConn { return c.app.TCPConn }

// Moved counts bytes, in the direction from client to server and back.
func (c *LocalConn) Moved(toServer, toClient int64) { c.record.Moved(toServer, toClient) }

// Context ends when this side wants the connection cut.
func (c *LocalConn) Context() context.Context { return c.record.Context() }

// End says that the connection is over, and why.
func (c *LocalConn) End(reason conns.Reason, err error) {
	c.once.Do(func() {
		c.forget()
		c.record.End(reason, err)
		relay.Reset(c.app.TCPConn) // no more than Close, if it is closed
		c.app.done()
		c.locals.leave()
	})
}

// locals counts the connections that others carry for this pod, so that they
// are drained along with its own.
type locals struct {
	cut    context.Context
	cutNow context.CancelCauseFunc

	mu sync.Mutex
	// Guarded by mu.
	draining bool
	open     sync.WaitGroup
}

func newLocals() locals {
	cut, cutNow := context.WithCancelCause(context.Background())
	return locals{cut: cut, cutNow: cutNow}
}

func (l *locals) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining {
		return false
	}
	l.open.Add(1)
	return true
}

func (l *locals) leave() { l.open.Done() }

// drain takes no more, and returns once those that are open have ended.
func (l *locals) drain(timeout time.Duration) {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	deadline := time.AfterFunc(timeout, func() { l.cutNow(listen.ErrDrained) })
	defer deadline.Stop()
	l.open.Wait()
	l.cutNow(nil)
}
