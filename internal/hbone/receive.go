package hbone

import "golang.org/x/net/http2"

// beginData finds the stream of a DATA frame and accounts for all of the frame.
func (s *session) beginData(h header) error {
	r := &s.parser
	r.pad, r.padded = 0, h.flags.Has(http2.FlagDataPadded)
	if r.padded && h.length == 0 {
		return sizeError(h)
	}
	if h.length == 0 && !h.flags.Has(http2.FlagDataEndStream) {
		if !s.quiet.spend() {
			return flood(EmptyDataFlood, "empty DATA frames")
		}
	} else if !r.padded {
		s.quiet.earn(1)
	}
	var err error
	r.st, err = s.receive(h)
	return err
}

// receive returns nil if the frame's data is to be thrown away.
func (s *session) receive(h header) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recvWindow -= int64(h.length); s.recvWindow < 0 {
		return nil, connectionError{http2.ErrCodeFlowControl, ProtocolError, "peer exceeds the tunnel's window"}
	}
	st := s.streams[h.stream]
	switch {
	case st == nil:
		s.creditLocked()
		if err := s.checkIDLocked(h.stream); err != nil || s.late.maybe(h.stream) {
			return nil, err
		}
		return nil, s.breakStreamLocked(h.stream, http2.ErrCodeStreamClosed)
	case st.remoteDone:
		s.creditLocked()
		return nil, s.breakStreamLocked(h.stream, http2.ErrCodeStreamClosed)
	}
	if st.recvWindow -= int64(h.length); st.recvWindow < 0 {
		return nil, connectionError{http2.ErrCodeFlowControl, ProtocolError, "peer exceeds a stream's window"}
	}
	st.buffered += int64(h.length)
	s.buffered += int64(h.length)
	s.moved += h.length
	s.creditLocked()
	return st, nil
}

// gotData passes on some of a DATA frame's payload.
func (s *session) gotData(p []byte) error {
	r := &s.parser
	gone := 0 // bytes that need no more room
	if r.padded && len(p) > 0 {
		r.padded, r.pad = false, int(p[0])
		p, gone = p[1:], 1
		if r.pad > r.left+len(p) {
			return protocolError("more padding than frame")
		}
		// What is all padding is as good as empty.
		if r.pad == r.left+len(p) && !s.quiet.spend() {
			return flood(EmptyDataFlood, "DATA frames that are all padding")
		}
	}
	if r.st == nil {
		return nil
	}
	// The last pad bytes of the frame are padding.
	data := p[:max(0, len(p)-max(0, r.pad-r.left))]
	gone += len(p) - len(data)
	if len(data) > 0 {
		gone += r.st.inbox.put(data)
	}
	if gone > 0 {
		s.mu.Lock()
		r.st.creditLocked(gone)
		s.mu.Unlock()
	}
	return nil
}

// endData ends the stream's half, if the frame does.
func (s *session) endData(h header) {
	st := s.parser.st
	s.parser.st = nil
	if st == nil || !h.flags.Has(http2.FlagDataEndStream) {
		return
	}
	s.mu.Lock()
	st.remoteEndedLocked()
	s.mu.Unlock()
	st.inbox.tell()
}
