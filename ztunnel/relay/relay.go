// Package relay moves the bytes of one connection between its two ends.
//
//	relay.go    Start: both directions, how a connection ends, cutting
//	socket.go   from socket to socket: small reads, bulk, splice
//	tunnel.go   between a socket and a tunnel's stream
//	end.go      one end: half-close, reset, is the peer gone
//	parking.go  connections that nothing moves on wait without a goroutine
//
// TCP is carried faithfully. A half that closes closes that half on the other
// side and no more: a server may go on sending long after its client's last
// byte. A reset, or a write that finds its end gone, resets the other side. The
// two directions never wait for each other.
//
// Invariants: when a connection's done is called, both ends are closed and every
// goroutine that was started for it has ended or is about to. A buffer is held
// only while it carries data, a pipe of the kernel only until the inspection
// that follows the bulk; a connection that is idle costs no goroutine.
//
// Logging and counting are conns' job: the Relay reports to a [Meter].
package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
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

const (
	// inspectEvery is how often an open connection is looked at for what no read
	// or write would tell: a peer that reset after its FIN or while the other side
	// stalls, and bytes spliced but not yet counted. It bounds how long such a
	// connection is kept, and at 10,000 idle connections costs a thousand cheap
	// timers a second.
	inspectEvery = 10 * time.Second
	// inspectFirst is when it is looked at first; the pauses double from there. A
	// connection on which nothing moved since the inspection before is parked.
	inspectFirst = 2 * time.Second
	// inspectBulk is how often it is while bytes are spliced: at urgent data, that
	// stalls until it is interrupted.
	inspectBulk = time.Second
)

// Relay carries connections. One is enough for a process.
type Relay struct {
	// Fixed after New.
	lot                        *lot
	inspectFirst, inspectEvery time.Duration
}

// New makes a Relay. Close it when its connections are over.
func New() (*Relay, error) {
	lot, err := newLot()
	if err != nil {
		return nil, err
	}
	return &Relay{lot: lot, inspectFirst: inspectFirst, inspectEvery: inspectEvery}, nil
}

// Close returns once nothing of the Relay runs any more.
func (r *Relay) Close() error { return r.lot.close() }

// Start carries client and server to each other until both halves are closed,
// either is reset, or ctx ends, which resets both. It closes both ends, and then
// calls done, once. It works in the goroutine of its caller for as long as
// something moves, and may return before the connection is over.
func (r *Relay) Start(ctx context.Context, client, server Conn, meter Meter, done func(Result)) {
	s := &session{relay: r, meter: meter, reason: Closed, done: done, inspection: r.inspectFirst}
	s.client.init(client, ClientReset)
	s.server.init(server, ServerReset)
	s.toServer = direction{session: s, src: &s.client, dst: &s.server}
	s.toClient = direction{session: s, src: &s.server, dst: &s.client}
	s.left.Store(2)
	if s.client.stream != nil && s.server.stream != nil {
		panic("relay: both ends are streams")
	}
	s.mu.Lock()
	s.inspector = time.AfterFunc(s.inspection, s.inspect)
	s.stopCut = context.AfterFunc(ctx, func() { s.fail(Cut, context.Cause(ctx)) })
	s.mu.Unlock()

	switch {
	case s.client.stream != nil:
		s.receive(&s.toServer)
		s.toClient.run()
	case s.server.stream != nil:
		s.receive(&s.toClient)
		s.toServer.run()
	default:
		go s.toServer.run()
		s.toClient.run()
	}
}

type session struct {
	// Fixed at the start.
	relay          *Relay
	client, server end
	meter          Meter
	done           func(Result)

	toServer, toClient direction
	left               atomic.Int32 // directions that are not over

	mu sync.Mutex
	// Guarded by mu.
	reason     Reason
	err        error
	ended      bool
	inspector  *time.Timer
	inspection time.Duration // the pause before the next
	inspected  int64         // bytes moved by then
	stopCut    func() bool
	receiving  bool // from a stream, whose direction is not over

	// Of a connection with a stream.
	delivery delivery
	frames   frameReader // owned by the goroutine that reads the socket
}

// direction is one of the two ways of a connection.
type direction struct {
	// Fixed.
	session  *session
	src, dst *end

	moved atomic.Int64
	park  atomic.Bool // asks the goroutine that reads src to park

	// Guarded by session.mu.
	parked space // zero while a goroutine reads src
}

// errParked is why run returns although its direction is not over.
var errParked = errors.New("parked")

// run carries from src, a socket, until its half ends, and then ends dst's; or
// until nothing moves any more, and then it is called again when something does.
func (d *direction) run() {
	var blame *end
	var err error
	if d.dst.stream != nil {
		blame, err = d.sending()
	} else {
		blame, err = d.splicing()
	}
	if err == errParked {
		return
	}
	s := d.session
	if err == nil {
		blame, err = s.endHalf(d.src, d.dst)
	}
	if err != nil && !s.isYetToDeliver(err) {
		s.fail(blame.blame, err)
	}
	if s.left.Add(-1) == 0 {
		s.finish()
	}
}

// isYetToDeliver tells whether a write to a stream failed because the peer has
// reset it, and what it sent before is still on its way to the other side: that
// direction comes to the reset in its turn.
func (s *session) isYetToDeliver(err error) bool {
	reset, ok := errors.AsType[*hbone.ResetError](err)
	if !ok || !reset.Remote {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.receiving && !s.ended
}

// over says that a direction is over, from where nothing may take long.
func (s *session) over() {
	if s.left.Add(-1) == 0 {
		go s.finish()
	}
}

// interrupted is called when a read of src was, and returns errParked if the
// caller is to leave: from then on the direction is not its own any more.
func (d *direction) interrupted() error {
	d.src.resume()
	if d.park.Swap(false) && d.session.relay.lot.park(d) {
		return errParked
	}
	return nil
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
	if !first {
		return
	}
	s.client.reset()
	s.server.reset()
	s.endReceived()
	for _, d := range []*direction{&s.toServer, &s.toClient} {
		if s.relay.lot.leave(d) {
			s.over()
		}
	}
}

// inspect looks for an end whose peer is gone, has splices report what they
// moved, has a connection parked on which nothing moves, and comes back later.
func (s *session) inspect() {
	moved := s.toServer.moved.Load() + s.toClient.moved.Load()
	s.mu.Lock()
	ended, idle := s.ended, moved == s.inspected
	s.inspected = moved
	if !ended {
		s.inspection = min(2*s.inspection, s.relay.inspectEvery)
		s.inspector.Reset(s.nextInspection())
	}
	s.mu.Unlock()
	if ended {
		return
	}
	for _, d := range []*direction{&s.toServer, &s.toClient} {
		if d.src.gone() {
			s.fail(d.src.blame, errGone)
			return
		}
		if idle && s.relay.lot.wanted(d) {
			d.park.Store(true)
			d.src.wake()
		} else {
			d.src.interrupt()
		}
	}
}

// nextInspection is the pause before it.
func (s *session) nextInspection() time.Duration {
	client, server := s.client.spliced.Swap(false), s.server.spliced.Swap(false)
	if client || server || s.client.splicing.Load() || s.server.splicing.Load() {
		return min(s.relay.inspectEvery, inspectBulk)
	}
	return s.inspection
}

// inspectSoon has a connection that begins to be spliced looked at in time.
func (s *session) inspectSoon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.inspector.Reset(s.nextInspection())
	}
}

func (s *session) finish() {
	s.mu.Lock()
	s.ended = true
	s.inspector.Stop()
	s.stopCut()
	res := Result{Reason: s.reason, Err: s.err}
	s.mu.Unlock()
	s.client.conn.Close()
	s.server.conn.Close()
	res.ToServer, res.ToClient = s.toServer.moved.Load(), s.toClient.moved.Load()
	s.done(res)
}

// count says that n bytes went in the direction d.
func (d *direction) count(n int64) {
	if n == 0 {
		return
	}
	d.moved.Add(n)
	if d == &d.session.toServer {
		d.session.meter.Moved(n, 0)
	} else {
		d.session.meter.Moved(0, n)
	}
}
