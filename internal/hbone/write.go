package hbone

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// queue is the io.Writer of the session's framer: it appends to out. What it
// is given is written in time, or the session has ended; it never fails.
type queue session

func (q *queue) Write(p []byte) (int, error) {
	(*session)(q).queueLocked(p)
	return len(p), nil
}

// outBuffers are shared by all tunnels, so that an idle one holds none.
var outBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, outLimit+maxDataFrame+frameHeader)
	return &b
}}

func (s *session) queueLocked(p []byte) {
	if s.out == nil {
		s.out = *outBuffers.Get().(*[]byte)
	}
	s.out = append(s.out, p...)
	s.outCond.Signal()
}

// chargeLocked accounts for n bytes queued at the peer's instance.
func (s *session) chargeLocked(n int) {
	if s.outControl += n; s.outControl > outControlLimit {
		s.failLocked(fmt.Errorf("%w: peer asks and does not read the answers", errCalm))
	}
}

// dataLocked queues one DATA frame; the caller has checked windows and room.
func (s *session) dataLocked(id uint32, p []byte, end bool) {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	n := len(p)
	s.queueLocked([]byte{
		byte(n >> 16), byte(n >> 8), byte(n), byte(http2.FrameData), byte(flags),
		byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id),
	})
	s.queueLocked(p)
	s.sendWindow -= int64(n)
	s.dataSent += n
}

// write writes what is queued until the session has ended and nothing is left.
//
// It then closes only its half and leaves the other to read: closing a TCP
// connection with something unread makes the kernel throw away what it has not
// yet sent, and that may be the end of a stream.
func (s *session) write() {
	for {
		s.mu.Lock()
		for len(s.out) == 0 && s.err == nil {
			s.outCond.Wait()
		}
		out := s.out
		s.out, s.outControl = nil, 0
		s.wakeWriterLocked()
		s.mu.Unlock()
		if len(out) == 0 {
			break
		}
		_, err := s.conn.Write(out)
		if cap(out) <= 2*outLimit {
			out = out[:0]
			outBuffers.Put(&out)
		}
		if err != nil {
			s.fail(fmt.Errorf("write: %w", err))
			s.conn.Close()
			return
		}
	}
	t, ok := s.conn.(*tls.Conn)
	if !ok || t.CloseWrite() != nil {
		s.conn.Close()
		return
	}
	if half, ok := t.NetConn().(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	s.conn.SetReadDeadline(time.Now().Add(flushTimeout))
}

// wakeWriterLocked gives the room there is to the writer that waits longest.
// When it has used it, it calls again.
func (s *session) wakeWriterLocked() {
	for s.turn == nil && len(s.waiting) > 0 && s.roomLocked() {
		st := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.turn = st
		st.writable.Broadcast()
	}
}

// roomLocked reports whether a DATA frame may be queued, on whatever stream.
func (s *session) roomLocked() bool { return s.sendWindow > 0 && len(s.out) < outLimit }
