// Package relay moves the bytes of one connection between its two ends.
//
//	relay.go   Copy: both directions, how a connection ends, cutting
//	socket.go  from socket to socket: small reads, bulk, splice
//	tunnel.go  between a socket and a tunnel's stream
//	end.go     one end: half-close, reset, is the peer gone
//
// TCP is carried faithfully. A half that closes closes that half on the other
// side and no more: a server may go on sending long after its client's last
// byte. A reset, or a write that finds its end gone, resets the other side. The
// two directions never wait for each other.
//
// Invariants: when Copy returns, both ends are closed and every goroutine it
// started has ended. A buffer is held only while it carries data, a pipe of the
// kernel only until the inspection that follows the bulk; a connection through a
// tunnel that is idle costs one goroutine.
//
// Logging and counting are conns' job: Copy reports to a [Meter].
package relay

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is one end of a connection: a *net.TCPConn, or a [hbone.Stream]. Two
// streams are not carried to each other.
type Conn interface {
	net.Conn
	// CloseWrite sends the end of our half (FIN, END_STREAM).
	CloseWrite() error
}

// Meter learns of bytes while they move. It is called from two goroutines.
type Meter interface {
	Moved(toServer, toClient int64)
}

// Reason says how a connection ended.
type Reason string

const (
	// Closed: both halves ended in order.
	Closed Reason = "Closed"
	// ClientReset: the client's end was reset or failed.
	ClientReset Reason = "ClientReset"
	// ServerReset: the server's end was reset or failed.
	ServerReset Reason = "ServerReset"
	// Cut: the context ended first.
	Cut Reason = "Cut"
)

// Result is what one connection carried, in bytes, and how it ended. Err is nil
// exactly if Reason is Closed.
type Result struct {
	ToServer, ToClient int64
	Reason             Reason
	Err                error
}

// inspectEvery is how often an open connection is looked at for what no read or
// write would tell: a peer that reset after its FIN or while the other side
// stalls, and bytes spliced but not yet counted. It bounds how long such a
// connection is kept, and at 10,000 idle connections costs a thousand cheap
// timers a second.
const inspectEvery = 10 * time.Second

// inspectBulk is how often it is while bytes are spliced: at urgent data, that
// stalls until it is interrupted.
const inspectBulk = time.Second

// Copy carries client and server to each other until both halves are closed,
// either is reset, or ctx ends, which resets both. It closes both ends.
func Copy(ctx context.Context, client, server Conn, meter Meter) Result {
	return carry(ctx, client, server, meter, inspectEvery)
}

func carry(ctx context.Context, client, server Conn, meter Meter, inspectEvery time.Duration) Result {
	s := &session{inspectEvery: inspectEvery, meter: meter, reason: Closed}
	s.client.init(client, ClientReset)
	s.server.init(server, ServerReset)
	stopCut := context.AfterFunc(ctx, func() { s.fail(Cut, context.Cause(ctx)) })
	defer stopCut()
	s.mu.Lock()
	s.inspector = time.AfterFunc(inspectEvery, s.inspect)
	s.mu.Unlock()

	switch {
	case s.client.stream != nil && s.server.stream != nil:
		panic("relay: both ends are streams")
	case s.client.stream != nil:
		s.carryStream(&s.client, &s.server, &s.toServer, &s.toClient)
	case s.server.stream != nil:
		s.carryStream(&s.server, &s.client, &s.toClient, &s.toServer)
	default:
		var wg sync.WaitGroup
		wg.Go(func() { s.pump(&s.client, &s.server, &s.toServer, s.splicing) })
		s.pump(&s.server, &s.client, &s.toClient, s.splicing)
		wg.Wait()
	}
	return s.finish()
}

type session struct {
	// Fixed at the start.
	inspectEvery   time.Duration
	client, server end
	meter          Meter

	toServer, toClient atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	reason    Reason
	err       error
	ended     bool
	inspector *time.Timer
	receiving bool // from a stream, whose direction is not over

	// Of a connection with a stream.
	received sync.WaitGroup // until receiving is over
	delivery delivery
	frames   frameReader // owned by the goroutine that waits for the socket
}

// pump carries one direction until src's half ends, then ends dst's.
func (s *session) pump(src, dst *end, moved *atomic.Int64, carry func(src, dst *end, moved *atomic.Int64) (*end, error)) {
	blame, err := carry(src, dst, moved)
	if err == nil {
		blame, err = s.endHalf(src, dst)
	}
	if err != nil {
		s.fail(blame.blame, err)
	}
}

// endHalf: src has sent all that it had.
func (s *session) endHalf(src, dst *end) (blame *end, err error) {
	src.finReceived.Store(true)
	return dst, dst.closeWrite()
}

// fail ends the connection abnormally: the first reason stays, both ends are
// reset, and both directions wake.
func (s *session) fail(reason Reason, err error) {
	s.mu.Lock()
	// To cut what has ended is too late: its last word may have been what the
	// other side waited for before it closed the tunnel.
	first := !s.ended && !(reason == Cut && s.client.over() && s.server.over())
	if first {
		s.ended, s.reason, s.err = true, reason, err
	}
	s.mu.Unlock()
	if first {
		s.client.reset()
		s.server.reset()
		s.mu.Lock()
		s.endReceivedLocked()
		s.mu.Unlock()
	}
}

// inspect looks for an end whose peer is gone, has splices report what they
// moved, and comes back later.
func (s *session) inspect() {
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.inspector.Reset(s.nextInspection())
	}
	s.mu.Unlock()
	if ended {
		return
	}
	for _, e := range []*end{&s.client, &s.server} {
		if e.gone() {
			s.fail(e.blame, errGone)
			return
		}
		e.interrupt()
	}
}

func (s *session) nextInspection() time.Duration {
	client, server := s.client.spliced.Swap(false), s.server.spliced.Swap(false)
	if client || server || s.client.splicing.Load() || s.server.splicing.Load() {
		return min(s.inspectEvery, inspectBulk)
	}
	return s.inspectEvery
}

// inspectSoon has a connection that begins to be spliced looked at in time.
func (s *session) inspectSoon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.inspector.Reset(s.nextInspection())
	}
}

func (s *session) finish() Result {
	s.mu.Lock()
	s.ended = true
	s.inspector.Stop()
	res := Result{Reason: s.reason, Err: s.err}
	s.mu.Unlock()
	s.client.conn.Close()
	s.server.conn.Close()
	res.ToServer, res.ToClient = s.toServer.Load(), s.toClient.Load()
	return res
}

func (s *session) count(moved *atomic.Int64, n int64) {
	if n == 0 {
		return
	}
	moved.Add(n)
	if moved == &s.toServer {
		s.meter.Moved(n, 0)
	} else {
		s.meter.Moved(0, n)
	}
}
