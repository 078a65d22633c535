package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Incoming is a peer's request for a connection. Exactly one of Accept and
// Refuse is to be called.
type Incoming struct {
	// Authority is the address or name, with a port, that the peer wants: well
	// formed, nothing more.
	Authority string
	Header    http.Header

	st   *stream
	kept bool
	over func()
}

// Keep is called by a handler that returns before its stream is done with. The
// stream is left when the result is called, once, and not when the handler returns.
func (in *Incoming) Keep() (leave func()) {
	in.kept = true
	return in.over
}

// Accept answers 200. It fails if the peer has given up meanwhile.
func (in *Incoming) Accept() (Stream, error) {
	if err := in.st.answerWith(http.StatusOK, ""); err != nil {
		return nil, fmt.Errorf("accept stream to %s: %w", in.Authority, err)
	}
	return in.st, nil
}

// Refuse answers with an HTTP status (400, 401, 503) and a few words.
func (in *Incoming) Refuse(code int, reason string) error {
	if code < 400 || code > 599 {
		code = http.StatusInternalServerError // no refusal may look like consent
	}
	if err := in.st.answerWith(code, reason); err != nil {
		return fmt.Errorf("refuse stream to %s: %w", in.Authority, err)
	}
	return nil
}

var errAnswered = errors.New("already answered")

func (st *stream) answerWith(code int, reason string) error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	err := st.answerLocked(code, reason)
	st.s.flushLocked()
	return err
}

func (st *stream) answerLocked(code int, reason string) error {
	switch {
	case st.answered:
		return errAnswered
	case st.err != nil:
		return st.err
	}
	st.answered = true
	refused := code != http.StatusOK
	if err := st.statusLocked(code, reason, refused); err != nil {
		return err
	}
	if refused {
		if !st.remoteDone {
			// The answer is whole and the request's data unwanted (RFC 9113 section 8.1).
			st.s.control = appendReset(st.s.control, st.id, http2.ErrCodeNo)
		}
		st.localDone = true
		st.endLocked(net.ErrClosed)
	}
	return nil
}

// rejectLocked tells what is wrong with a malformed request, and resets it (RFC
// 9113 section 8.1.1).
func (st *stream) rejectLocked(fault string) error {
	st.answered = true
	if err := st.statusLocked(http.StatusBadRequest, fault, false); err != nil {
		return err
	}
	st.s.resetLocked(st.id, http2.ErrCodeProtocol)
	st.endLocked(&ResetError{Code: http2.ErrCodeProtocol})
	return nil
}

// statusLocked queues the HEADERS of an answer.
func (st *stream) statusLocked(code int, reason string, end bool) error {
	var h http.Header
	if reason = printable(reason); reason != "" {
		h = http.Header{HeaderReason: {reason}}
	}
	return st.s.headersLocked(st.id, end, []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(code)}}, h)
}

// Serve answers the requests of one tunnel over conn, an established TLS
// connection that it takes over: h runs in a goroutine for each. A stream that
// h leaves without having closed it in order is reset: it leaves by returning, or
// later, see [Incoming.Keep].
//
// When ctx ends, the tunnel drains: the peer is told to open no more streams,
// and those that are open may finish until opts.DrainTimeout has passed. The
// context of h does not end with ctx, but when the tunnel does, or when the peer
// gives up a request that is not yet answered. A tunnel that nobody uses drains as
// well. Serve returns after every stream was left:
// with nil unless streams were cut short, or rules broken.
func Serve(ctx context.Context, conn net.Conn, opts Options, h func(context.Context, *Incoming)) error {
	tunnelCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var running sync.WaitGroup
	s, err := newSession(conn, true, opts, func(st *stream, b *block) {
		in := &Incoming{Authority: b.pseudo["authority"], Header: b.header, st: st}
		ctx, cancel := context.WithCancelCause(tunnelCtx)
		st.gaveUp = cancel
		running.Add(1)
		in.over = func() {
			cancel(nil)
			st.left()
			running.Done()
		}
		go func() {
			h(ctx, in)
			if !in.kept {
				in.over()
			}
		}()
	})
	if err != nil {
		conn.Close()
		return err
	}
	var cut error
	select {
	case <-s.done:
	case <-ctx.Done():
		cut = s.drain(opts.drainTimeout())
	case <-s.stale:
		cut = s.drain(opts.drainTimeout())
	}
	s.close()
	cancel()
	running.Wait()
	return errors.Join(cut, s.failure())
}

// TurnAway tells the peer of an established TLS connection that it gets no tunnel,
// and closes the connection.
func TurnAway(conn net.Conn, reason string) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(flushTimeout))
	last := appendGoAway(appendSettings(nil, serverSettings()), 0, http2.ErrCodeEnhanceYourCalm, printable(reason))
	if _, err := conn.Write(last); err != nil {
		return
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		// What is closed with something unread is reset, and the peer may then lose
		// what it was told.
		conn.SetReadDeadline(time.Now().Add(flushTimeout))
		io.CopyN(io.Discard, conn, maxControlFrame)
	}
}

// left is called when a stream's handler has returned.
func (st *stream) left() {
	s := st.s
	s.mu.Lock()
	answered := st.answered
	s.mu.Unlock()
	if answered {
		st.Close()
	} else {
		st.end(http2.ErrCodeInternal)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers--
	s.nextLocked()
	s.leftLocked()
}

// gotRequestLocked begins a stream, or answers without one.
func (s *session) gotRequestLocked(b *block) error {
	switch {
	case s.err != nil:
		return nil
	case b.streamID > s.limitID, len(s.streams) >= maxServerStreams, len(s.queued) >= maxServerStreams:
		if !b.ended {
			s.late.add(b.streamID)
		}
		return s.breakStreamLocked(b.streamID, http2.ErrCodeRefusedStream)
	}
	st := s.newStreamLocked(b.streamID)
	if b.ended {
		st.remoteDone = true
		st.inbox.finish(io.EOF)
	}
	if fault, malformed := connectFault(b); fault != "" {
		if !s.resets.spend() {
			return flood(ResetFlood, "malformed requests")
		}
		s.chargeLocked(2 * frameHeader)
		if malformed {
			return st.rejectLocked(fault)
		}
		return st.answerLocked(http.StatusBadRequest, fault)
	}
	if s.unused != nil {
		s.unused.Stop()
	}
	if s.handlers >= maxServerStreams {
		s.queued = append(s.queued, queued{st, b})
		return nil
	}
	s.handlers++
	s.incoming(st, b)
	return nil
}

// queued is a request that waits for a handler. To the peer the streams of those
// that have yet to return are closed long since: it may open others.
type queued struct {
	st *stream
	b  *block
}

// nextLocked begins with what waits, as far as handlers have returned.
func (s *session) nextLocked() {
	for len(s.queued) > 0 && s.handlers < maxServerStreams {
		next := s.queued[0]
		s.queued[0] = queued{}
		if s.queued = s.queued[1:]; len(s.queued) == 0 {
			s.queued = nil
		}
		if next.st.err != nil { // given up meanwhile
			continue
		}
		s.handlers++
		s.incoming(next.st, next.b)
	}
}

// connectFault tells what keeps a request from being a CONNECT that is served
// here, and whether it is malformed (RFC 9113 sections 8.3.1 and 8.5); empty if
// nothing does.
func connectFault(b *block) (fault string, malformed bool) {
	method, authority := b.pseudo["method"], b.pseudo["authority"]
	connect := method == http.MethodConnect
	for name := range b.pseudo {
		switch name {
		case "method", "authority":
		case "scheme", "path":
			malformed = malformed || connect
		default:
			malformed = true
		}
	}
	switch {
	case b.malformed != nil:
		return b.malformed.Error(), true
	case malformed:
		return "pseudo-headers that have no place there", true
	case connect && authority == "", !connect && (method == "" || b.pseudo["scheme"] == "" || b.pseudo["path"] == ""):
		return "pseudo-headers are missing", true
	case !connect:
		return "only CONNECT is served here", false
	case !validAuthority(authority):
		return "malformed authority", false
	}
	return "", false
}

// drainPing is the ping whose answer tells that the peer has read GOAWAY.
var drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}

// drain lets the streams finish (RFC 9113 section 6.8): a first GOAWAY asks for
// no more, and after a round trip, when none can be under way any more, a second
// one names the last that is served. It fails if not all finished in time.
func (s *session) drain(timeout time.Duration) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	s.mu.Lock()
	s.control = appendGoAway(s.control, maxStreamID, http2.ErrCodeNo, "")
	s.control = appendPing(s.control, false, drainPing)
	s.flushSoonLocked()
	s.mu.Unlock()
	select {
	case <-s.drainPong:
	case <-time.After(min(timeout, drainPingTimeout)):
	case <-s.done:
		return nil
	}
	s.mu.Lock()
	s.limitID = s.lastID
	s.control = appendGoAway(s.control, s.limitID, http2.ErrCodeNo, "")
	s.flushSoonLocked()
	s.drainLocked()
	s.mu.Unlock()
	select {
	case <-s.idle:
		// Told to go away, the peer closes the tunnel, once it has passed on what
		// it got. Some throw that away when this side closes first.
		select {
		case <-s.done:
		case <-time.After(leaveTimeout):
		case <-deadline.C:
		}
	case <-s.done:
	case <-deadline.C:
		s.mu.Lock()
		defer s.mu.Unlock()
		return fmt.Errorf("%w with %d streams: drained for %s", ErrTunnelClosed, len(s.streams), timeout)
	}
	return nil
}
