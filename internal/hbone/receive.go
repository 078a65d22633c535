package hbone

import (
	"io"

	"golang.org/x/net/http2"
)

// readData moves the payload of a DATA frame from the connection into its
// stream's inbox.
func (s *session) readData(fh http2.FrameHeader) error {
	length, pad := int(fh.Length), 0
	if fh.Flags.Has(http2.FlagDataPadded) {
		if length == 0 {
			return connectionError{http2.ErrCodeFrameSize, "padded DATA frame without padding"}
		}
		b, err := s.br.ReadByte()
		if err != nil {
			return err
		}
		if pad = int(b); pad >= length {
			return protocolError("more padding than frame")
		}
		length -= 1 + pad
	}
	ended := fh.Flags.Has(http2.FlagDataEndStream)
	if length == 0 && !ended {
		if !s.quiet.spend() {
			return errCalm
		}
	} else {
		s.quiet.earn(1)
	}
	st, err := s.receive(fh, length)
	if err != nil {
		return err
	}
	for left := length; left > 0; {
		n, err := s.fill(st, left)
		left -= n
		if err != nil {
			return err
		}
	}
	if _, err := s.br.Discard(pad); err != nil {
		return err
	}
	if st != nil && ended {
		s.mu.Lock()
		st.remoteDone = true
		st.inbox.finish(io.EOF)
		st.doneLocked()
		s.mu.Unlock()
	}
	return nil
}

// receive finds the stream of a DATA frame with length bytes of data and
// accounts for all of the frame; nil if the data is to be thrown away.
func (s *session) receive(fh http2.FrameHeader, length int) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recvWindow -= int64(fh.Length); s.recvWindow < 0 {
		return nil, connectionError{http2.ErrCodeFlowControl, "peer exceeds the tunnel's window"}
	}
	st := s.streams[fh.StreamID]
	switch {
	case st == nil:
		s.creditLocked()
		return nil, s.checkIDLocked(fh.StreamID)
	case st.remoteDone:
		s.creditLocked()
		return nil, s.breakStreamLocked(fh.StreamID, http2.ErrCodeStreamClosed)
	}
	if st.recvWindow -= int64(fh.Length); st.recvWindow < 0 {
		return nil, connectionError{http2.ErrCodeFlowControl, "peer exceeds a stream's window"}
	}
	st.buffered += int64(length)
	s.buffered += int64(length)
	st.creditLocked(0)
	return st, nil
}

// fill reads some of the next left bytes into st's inbox, or discards them.
func (s *session) fill(st *stream, left int) (int, error) {
	if st == nil {
		return s.br.Discard(left)
	}
	space := st.inbox.space()
	n, err := s.br.Read(space[:min(left, len(space))])
	if dropped := st.inbox.filled(n); dropped > 0 {
		s.mu.Lock()
		st.creditLocked(dropped)
		s.mu.Unlock()
	}
	return n, err
}
