package hbone

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// stream is one connection in a tunnel. It implements [Stream].
type stream struct {
	// fixed
	s  *session
	id uint32

	inbox   inbox
	writing sync.Mutex // one write at a time, so that they do not mingle

	// guarded by s.mu
	writable      *sync.Cond // for a writer; nil until one waits
	writeDeadline deadline
	last          *Buffer // the last frame that is queued; nil if none is
	sendWindow    int64
	window        int64 // how much may be unread
	recvWindow    int64 // how much the peer may still send
	buffered      int64 // received and not read
	answered      bool  // the request was accepted or refused
	localDone     bool  // END_STREAM was sent
	remoteDone    bool  // END_STREAM was received, or RST_STREAM
	err           error // why the stream ended; nil while it is in s.streams
	closed        bool  // by this side

	// gaveUp, on a server, ends the handler's context.
	gaveUp context.CancelCauseFunc

	// ready is closed once answer or err is set; clients only.
	ready  chan struct{}
	answer error // what the peer said: nil for 200
}

// newStreamLocked adds a stream to the session.
func (s *session) newStreamLocked(id uint32) *stream {
	st := &stream{s: s, id: id, sendWindow: s.peerWindow, window: firstWindow, recvWindow: firstWindow}
	if !s.server {
		st.ready = make(chan struct{})
	}
	st.inbox.st = st
	s.streams[id] = st
	return st
}

func (st *stream) Read(p []byte) (int, error) {
	n, err := st.inbox.read(p)
	if n > 0 {
		st.credit(n)
	}
	return n, err
}

// Pending is of [Stream].
func (st *stream) Pending() bool { return st.inbox.pending() }

// Divert is of [Stream].
func (st *stream) Divert(sink Sink) { st.inbox.divert(sink) }

// credit accounts for n bytes that left the inbox, later than they came.
func (st *stream) credit(n int) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.creditLocked(n)
	if st.s.queuedLocked() {
		st.s.flushSoonLocked()
	}
}

// creditLocked accounts for n bytes that left the inbox and lets the peer send
// as many more, some at a time.
func (st *stream) creditLocked(n int) {
	s := st.s
	st.buffered -= int64(n)
	s.buffered -= int64(n)
	if st.err == nil && !st.remoteDone {
		if st.window-st.buffered-st.recvWindow >= st.window/4 {
			st.growLocked()
			due := st.window - st.buffered - st.recvWindow
			st.recvWindow += due
			s.control = appendWindowUpdate(s.control, st.id, uint32(due))
		}
	}
	s.creditLocked()
}

// growLocked doubles the window of a stream whose reader has taken nearly all
// that came, if there is room for that.
func (st *stream) growLocked() {
	by := min(st.window, maxStreamWindow-st.window, grownBudget-st.s.grown)
	if st.buffered <= st.window/4 {
		st.window += by
		st.s.grown += by
	}
}

// creditLocked opens the tunnel's window as far as the budget allows.
func (s *session) creditLocked() {
	due := min(tunnelWindow, receiveBudget-s.buffered) - s.recvWindow
	if due >= tunnelCredit && s.err == nil {
		s.recvWindow += due
		s.control = appendWindowUpdate(s.control, 0, uint32(due))
	}
}

func (st *stream) Write(p []byte) (written int, err error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	if len(p) == 0 {
		st.s.mu.Lock()
		defer st.s.mu.Unlock()
		return 0, st.writeErrLocked()
	}
	for written < len(p) && err == nil {
		b := bufferFor(len(p) - written)
		b.SetLen(copy(b.Space(), p[written:]))
		var n int
		n, err = st.writeBuffer(b)
		written += n
	}
	return written, err
}

// WriteBuffer is of [Stream].
func (st *stream) WriteBuffer(b *Buffer) (int, error) {
	if b.Len() == 0 {
		b.Free()
		return 0, nil
	}
	st.writing.Lock()
	defer st.writing.Unlock()
	return st.writeBuffer(b)
}

// writeBuffer queues b, in as many frames as the peer's limits make of it, and
// writes them if nobody else does.
func (st *stream) writeBuffer(b *Buffer) (written int, err error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for b != nil {
		if err := st.waitRoomLocked(b.Len() <= smallPayload); err != nil {
			b.Free()
			return written, err
		}
		n := min(b.Len(), s.peerFrame, int(min(st.sendWindow, s.sendWindow)))
		rest := b.split(n)
		s.queueLocked(st, b)
		written += n
		st.passTurnLocked()
		s.flushLocked()
		b = rest
	}
	return written, nil
}

// writeErrLocked is why nothing can be written.
func (st *stream) writeErrLocked() error {
	switch {
	case st.closed, st.localDone && st.err == nil:
		return net.ErrClosed
	case st.err != nil:
		return st.err
	case st.writeDeadline.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// waitRoomLocked returns once a frame of the stream may be queued. A little goes
// beside the queue that others wait for, but only once at a time.
func (st *stream) waitRoomLocked(little bool) error {
	s := st.s
	for {
		if err := st.writeErrLocked(); err != nil {
			st.waitNoMoreLocked()
			st.passTurnLocked()
			return err
		}
		switch {
		case st.sendWindow <= 0:
			st.passTurnLocked()
		case little && s.sendWindow > 0 && (st.last == nil || st.last.urgent && st.last.Len() < smallPayload/2):
			st.waitNoMoreLocked()
			return nil
		case s.turn == st, s.turn == nil && len(s.waiting) == 0 && s.roomLocked():
			return nil
		case !slices.Contains(s.waiting, st):
			s.waiting = append(s.waiting, st)
		}
		if st.writable == nil {
			st.writable = sync.NewCond(&s.mu)
		}
		st.writable.Wait()
	}
}

func (st *stream) waitNoMoreLocked() {
	if len(st.s.waiting) > 0 {
		st.s.waiting = slices.DeleteFunc(st.s.waiting, func(w *stream) bool { return w == st })
	}
}

// passTurnLocked lets the next writer use what room is left.
func (st *stream) passTurnLocked() {
	if st.s.turn == st {
		st.s.turn = nil
	}
	st.s.wakeWriterLocked()
}

func (st *stream) CloseWrite() error {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case st.closed:
		return net.ErrClosed
	case st.localDone:
		return nil
	case st.err != nil:
		return st.err
	}
	s.endStreamLocked(st)
	st.localDone = true
	st.wakeLocked()
	st.doneLocked()
	s.flushLocked()
	return nil
}

// doneLocked takes a stream whose halves are both closed out of the session.
func (st *stream) doneLocked() {
	if st.localDone && st.remoteDone {
		st.endLocked(net.ErrClosed)
	}
}

// endLocked takes the stream out of the session, because of err.
func (st *stream) endLocked(err error) {
	if st.err != nil {
		return
	}
	st.err = err
	st.inbox.finish(err) // keeps EOF, if that came before
	st.wakeLocked()
	st.writeDeadline.stop()
	switch {
	case st.answered:
	case !st.s.server:
		st.answered, st.answer = true, err
		close(st.ready)
	case st.gaveUp != nil:
		st.gaveUp(err)
	}
	delete(st.s.streams, st.id)
	st.s.grown -= st.window - firstWindow
	if !st.remoteDone {
		st.s.late.add(st.id)
	}
	st.s.leftLocked()
}

// Reset ends the stream as a TCP RST would (RFC 9113 section 8.5).
func (st *stream) Reset() error { return st.end(http2.ErrCodeConnect) }

func (st *stream) Close() error { return st.end(http2.ErrCodeCancel) }

// end lets go of the stream; a half that is open is reset with code.
func (st *stream) end(code http2.ErrCode) error {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.closed {
		return nil
	}
	st.closed = true
	if st.err == nil {
		s.resetLocked(st.id, code)
		st.endLocked(&ResetError{Code: code})
	}
	st.wakeLocked()
	st.creditLocked(st.inbox.drop(net.ErrClosed))
	if s.queuedLocked() {
		s.flushSoonLocked()
	}
	return nil
}

// resetLocked queues RST_STREAM, after what the stream has queued: what was
// written before goes out, as far as TCP would have sent it.
func (s *session) resetLocked(id uint32, code http2.ErrCode) {
	if st := s.streams[id]; st != nil && st.last != nil {
		st.last.reset = &ResetError{Code: code}
		return
	}
	s.control = appendReset(s.control, id, code)
}

func (st *stream) LocalAddr() net.Addr  { return st.s.conn.LocalAddr() }
func (st *stream) RemoteAddr() net.Addr { return st.s.conn.RemoteAddr() }

func (st *stream) SetDeadline(t time.Time) error {
	st.SetReadDeadline(t)
	return st.SetWriteDeadline(t)
}

func (st *stream) SetReadDeadline(t time.Time) error {
	st.inbox.setDeadline(t)
	return nil
}

func (st *stream) SetWriteDeadline(t time.Time) error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.err == nil {
		st.writeDeadline.set(t, st.wakeWriter)
		st.wakeLocked()
	}
	return nil
}

func (st *stream) wakeWriter() {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.wakeLocked()
}

// wakeLocked wakes whoever waits to write.
func (st *stream) wakeLocked() {
	if st.writable != nil {
		st.writable.Broadcast()
	}
}

// remoteEndedLocked: the peer has closed its half.
func (st *stream) remoteEndedLocked() {
	st.remoteDone = true
	st.inbox.finish(io.EOF)
	st.doneLocked()
}
