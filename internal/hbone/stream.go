package hbone

import (
	"context"
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
	writing sync.Mutex // one Write at a time, so that they do not mingle

	// guarded by s.mu
	writable      *sync.Cond
	writeDeadline deadline
	sendWindow    int64
	recvWindow    int64
	buffered      int64 // received and not read
	answered      bool  // the request was accepted or refused
	localDone     bool  // END_STREAM was sent
	remoteDone    bool  // END_STREAM was received
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
	st := &stream{s: s, id: id, sendWindow: s.peerWindow, recvWindow: streamWindow, ready: make(chan struct{})}
	st.inbox.init()
	st.writable = sync.NewCond(&s.mu)
	st.writeDeadline.wake = func() {
		s.mu.Lock()
		st.writable.Broadcast()
		s.mu.Unlock()
	}
	s.streams[id] = st
	return st
}

func (st *stream) Read(p []byte) (int, error) {
	n, err := st.inbox.read(p)
	if n > 0 {
		st.s.mu.Lock()
		st.creditLocked(n)
		st.s.mu.Unlock()
	}
	return n, err
}

// creditLocked accounts for n bytes that left the inbox and lets the peer send
// as many more, some at a time.
func (st *stream) creditLocked(n int) {
	s := st.s
	st.buffered -= int64(n)
	s.buffered -= int64(n)
	if st.err == nil && !st.remoteDone {
		if due := streamWindow - st.buffered - st.recvWindow; due >= streamCredit {
			st.recvWindow += due
			s.enc.WriteWindowUpdate(st.id, uint32(due))
		}
	}
	s.creditLocked()
}

// creditLocked opens the tunnel's window as far as the budget allows.
func (s *session) creditLocked() {
	due := min(tunnelWindow, receiveBudget-s.buffered) - s.recvWindow
	if due >= tunnelCredit && s.err == nil {
		s.recvWindow += due
		s.enc.WriteWindowUpdate(0, uint32(due))
	}
}

func (st *stream) Write(p []byte) (written int, err error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := st.waitRoomLocked(len(p) > 0); err != nil || len(p) == 0 {
			return written, err
		}
		n := min(len(p)-written, maxDataFrame, s.peerFrame, int(min(st.sendWindow, s.sendWindow)))
		st.sendWindow -= int64(n)
		s.dataLocked(st.id, p[written:written+n], false)
		written += n
		st.passTurnLocked()
		if written == len(p) {
			return written, nil
		}
	}
}

// waitRoomLocked returns once a frame of the stream may be queued. Without
// something to write it only looks at the stream's state.
func (st *stream) waitRoomLocked(something bool) error {
	s := st.s
	for {
		var err error
		switch {
		case st.closed, st.localDone && st.err == nil:
			err = net.ErrClosed
		case st.err != nil:
			err = st.err
		case st.writeDeadline.passed():
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			s.waiting = slices.DeleteFunc(s.waiting, func(w *stream) bool { return w == st })
			st.passTurnLocked()
			return err
		}
		switch {
		case !something:
			return nil
		case st.sendWindow <= 0:
			st.passTurnLocked()
		case s.turn == st, s.turn == nil && len(s.waiting) == 0 && s.roomLocked():
			return nil
		case !slices.Contains(s.waiting, st):
			s.waiting = append(s.waiting, st)
		}
		st.writable.Wait()
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
	s.dataLocked(st.id, nil, true)
	st.localDone = true
	st.writable.Broadcast()
	st.doneLocked()
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
	st.writable.Broadcast()
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
		s.enc.WriteRSTStream(st.id, code)
		st.endLocked(&ResetError{Code: code})
	}
	st.writable.Broadcast()
	st.creditLocked(st.inbox.drop(net.ErrClosed))
	return nil
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
		st.writeDeadline.set(t)
		st.writable.Broadcast()
	}
	return nil
}
