package hbone

import (
	"crypto/tls"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// batch is what is written at once.
type batch struct {
	control []byte
	data    []*Buffer
}

// plaintexts are for frames that share a TLS record.
var plaintexts = sync.Pool{New: func() any { b := make([]byte, 0, recordSize); return &b }}

// chargeLocked accounts for n bytes queued at the peer's instance.
func (s *session) chargeLocked(n int) {
	if s.answers += n; s.answers > outControlLimit {
		s.failLocked(flood(UnreadAnswers, "questions whose answers it does not read"))
	}
}

// queueLocked queues a DATA frame of b, whose windows and room the caller has
// seen to. A little that follows a little becomes one frame.
func (s *session) queueLocked(st *stream, b *Buffer) {
	n := b.Len()
	st.sendWindow -= int64(n)
	s.sendWindow -= int64(n)
	s.dataSent += n
	s.moved += n
	if last := st.last; last != nil && last.urgent && last.Len()+n <= smallPayload {
		copy(last.Space()[last.Len():], b.payload())
		last.SetLen(last.Len() + n)
		b.Free()
		return
	}
	b.st, b.end, b.urgent = st, false, st.last == nil && n <= smallPayload
	st.last = b
	if b.urgent {
		s.urgent = append(s.urgent, b)
	} else {
		s.bulk = append(s.bulk, b)
		s.bulkSize += n
	}
}

// endLocked queues the end of the stream's sending half.
func (s *session) endStreamLocked(st *stream) {
	if st.last != nil {
		st.last.end = true
		return
	}
	s.control = header{kind: http2.FrameData, flags: http2.FlagDataEndStream, stream: st.id}.append(s.control)
}

// unqueueLocked forgets the data of a stream that is reset.
func (s *session) unqueueLocked(st *stream) {
	if st.last == nil {
		return
	}
	forget := func(queue []*Buffer) []*Buffer {
		kept := queue[:0]
		for _, b := range queue {
			if b.st != st {
				kept = append(kept, b)
				continue
			}
			// The peer does not count what it never got.
			s.sendWindow += int64(b.Len())
			if !b.urgent {
				s.bulkSize -= b.Len()
			}
			b.Free()
		}
		clear(queue[len(kept):])
		return kept
	}
	s.urgent, s.bulk, st.last = forget(s.urgent), forget(s.bulk), nil
	s.wakeWriterLocked()
}

// flushLocked writes what is queued, unless somebody does already. It is not for
// the reading goroutine, which must never wait for a write: two ends that did
// would wait for each other. With others' frames still coming once what was
// queued is written, a goroutine takes over.
func (s *session) flushLocked() {
	if s.flushing {
		return
	}
	s.flushing = true
	if len(s.streams) > 1 && len(s.bulk) == 0 {
		// Others who are about to write little go first: one write for all of them. It
		// costs nothing where there is nobody.
		s.mu.Unlock()
		runtime.Gosched()
		s.mu.Lock()
	}
	s.writeLocked(true)
}

// flushSoonLocked has what is queued written without waiting for it.
func (s *session) flushSoonLocked() {
	if s.flushing {
		return
	}
	s.flushing = true
	go func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writeLocked(false)
	}()
}

// writeLocked writes one batch, or all there are. Its caller has set flushing.
func (s *session) writeLocked(one bool) {
	for s.err == nil || s.queuedLocked() {
		if !s.unwrittenLocked() {
			s.flushing = false
			return
		}
		s.rate.add(&s.moved)
		out := s.takeLocked()
		s.mu.Unlock()
		err := s.writeBatch(out)
		s.mu.Lock()
		if s.control == nil && cap(out.control) <= keptControl {
			s.control = out.control[:0]
		}
		if s.urgent == nil && cap(out.data) <= keptFrames {
			clear(out.data)
			s.urgent = out.data[:0]
		}
		if err != nil {
			s.failLocked(fmt.Errorf("write: %w", err))
			s.dropQueueLocked()
			s.conn.Close()
		}
		if one && s.queuedLocked() {
			s.flushing = false
			s.flushSoonLocked()
			return
		}
	}
	// The session has ended; flushing stays set, so that this is done once.
	go s.lastWord()
}

// What a tunnel keeps for its next frames.
const (
	keptControl = 512 // bytes
	keptFrames  = 16
)

func (s *session) queuedLocked() bool {
	return len(s.control) > 0 || len(s.urgent) > 0 || len(s.bulk) > 0
}

// unwrittenLocked reports whether there is anything to write: frames, or records
// of TLS itself, as when the peer asks for other keys.
func (s *session) unwrittenLocked() bool {
	return s.queuedLocked() || s.wire != nil && s.wire.unflushed() > 0
}

// takeLocked takes all that is urgent, and of the rest about a large frame.
func (s *session) takeLocked() batch {
	out := batch{control: s.control, data: s.urgent}
	s.control, s.answers, s.urgent = nil, 0, nil
	taken := 0
	for size := 0; taken < len(s.bulk) && size < largePayload; taken++ {
		size += s.bulk[taken].Len()
		s.bulkSize -= s.bulk[taken].Len()
	}
	if taken > 0 && len(out.data) == 0 && taken == len(s.bulk) {
		out.data, s.bulk = s.bulk, nil
	} else if taken > 0 {
		out.data = append(out.data, s.bulk[:taken]...)
		s.bulk = append(s.bulk[:0], s.bulk[taken:]...)
		clear(s.bulk[len(s.bulk) : len(s.bulk)+taken])
	}
	for _, b := range out.data {
		if b.st.last == b {
			b.st.last = nil
			b.st.wakeLocked()
		}
	}
	s.wakeWriterLocked()
	return out
}

func (s *session) dropQueueLocked() {
	for _, queue := range [][]*Buffer{s.urgent, s.bulk} {
		for _, b := range queue {
			b.st.last = nil
			b.Free()
		}
	}
	s.control, s.urgent, s.bulk, s.bulkSize = nil, nil, nil, 0
}

// writeBatch writes frames, those that are small together in one record.
func (s *session) writeBatch(out batch) (err error) {
	together := out.control
	var shared *[]byte
	write := func(p []byte) {
		if err == nil && len(p) > 0 {
			_, err = s.conn.Write(p)
		}
	}
	for i, b := range out.data {
		h := header{kind: http2.FrameData, stream: b.st.id}
		if b.end {
			h.flags = http2.FlagDataEndStream
		}
		frame := b.frame(h)
		alone := len(together) == 0 && (i == len(out.data)-1 || len(frame) >= recordSize)
		switch {
		case alone:
			write(frame)
		case len(together)+len(frame) > recordSize:
			write(together)
			write(frame)
			together = together[:0]
		default:
			if shared == nil {
				shared = plaintexts.Get().(*[]byte)
				together = append((*shared)[:0], together...)
			}
			together = append(together, frame...)
		}
		if b.reset != nil {
			together = appendReset(together, b.st.id, b.reset.Code)
		}
		b.Free()
		if err == nil && s.wire != nil && s.wire.unflushed() >= wireFlush {
			err = s.wire.Flush()
		}
	}
	write(together)
	if shared != nil {
		plaintexts.Put(shared)
	}
	if err == nil && s.wire != nil {
		err = s.wire.Flush()
	}
	return err
}

// lastWord closes this side's half and leaves the other to be read: closing a
// TCP connection with something unread makes the kernel throw away what it has
// not yet sent, and that may be the end of a stream.
func (s *session) lastWord() {
	defer close(s.written)
	t, ok := s.conn.(*tls.Conn)
	if !ok {
		s.conn.Close()
		return
	}
	if s.wire != nil && s.wire.unbatch() != nil || t.CloseWrite() != nil {
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
		st.wakeLocked()
	}
}

// roomLocked reports whether more bulk may be queued.
func (s *session) roomLocked() bool { return s.sendWindow > 0 && s.bulkSize < outLimit }
