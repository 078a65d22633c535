package hbone

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/net/http2"
)

// connectionError ends the tunnel, with a GOAWAY that says so (RFC 9113
// section 5.4.1).
type connectionError struct {
	Code http2.ErrCode
	text string
}

func (e connectionError) Error() string { return e.text }

func protocolError(format string, args ...any) error {
	return connectionError{http2.ErrCodeProtocol, fmt.Sprintf(format, args...)}
}

// errCalm ends a tunnel whose peer makes work that serves nothing.
var errCalm = connectionError{http2.ErrCodeEnhanceYourCalm, "peer floods"}

// read reads frames until the connection ends, and returns why.
func (s *session) read() error {
	if s.server {
		// Whoever completes a TLS handshake speaks soon, or not at all.
		s.conn.SetReadDeadline(time.Now().Add(prefaceTimeout))
		var preface [len(http2.ClientPreface)]byte
		if _, err := io.ReadFull(s.br, preface[:]); err != nil {
			return fmt.Errorf("read preface: %w", err)
		}
		if string(preface[:]) != http2.ClientPreface {
			return protocolError("peer does not speak HTTP/2")
		}
	}
	for first := true; ; first = false {
		s.in.SetMaxReadFrameSize(maxReadFrame)
		fh, err := s.in.ReadFrameHeader()
		if err != nil {
			return asConnectionError(err)
		}
		if first && (fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck)) {
			return protocolError("first frame is %s, not SETTINGS", fh.Type)
		}
		if fh.Type == http2.FrameData {
			err = s.readData(fh)
		} else {
			err = s.readControl(fh)
		}
		if err != nil {
			return asConnectionError(err)
		}
		if first && s.server {
			s.endPreface()
		}
		s.frames.Add(1)
	}
}

// endPreface lets the connection be silent, if it is not ending.
func (s *session) endPreface() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.conn.SetReadDeadline(time.Time{})
	}
}

// asConnectionError gives what the Framer found its place in a GOAWAY.
func asConnectionError(err error) error {
	var ce http2.ConnectionError
	switch {
	case errors.Is(err, http2.ErrFrameTooLarge):
		return connectionError{http2.ErrCodeFrameSize, "frame too large"}
	case errors.As(err, &ce):
		return connectionError{http2.ErrCode(ce), "peer breaks HTTP/2: " + http2.ErrCode(ce).String()}
	case errors.As(err, new(connectionError)):
		return err
	}
	return fmt.Errorf("read: %w", err)
}

// readControl reads and serves a frame that carries no data.
func (s *session) readControl(fh http2.FrameHeader) error {
	if fh.Length > maxControlFrame {
		return connectionError{http2.ErrCodeEnhanceYourCalm, fmt.Sprintf("%s frame of %d bytes", fh.Type, fh.Length)}
	}
	s.in.SetMaxReadFrameSize(maxControlFrame)
	f, err := s.in.ReadFrameForHeader(fh)
	var broken http2.StreamError
	if errors.As(err, &broken) {
		if fh.Type == http2.FrameHeaders {
			// Its headers went unread, so the dynamic tables differ from now on.
			return protocolError("malformed HEADERS frame")
		}
		return s.breakStream(broken.StreamID, broken.Code)
	}
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.HeadersFrame:
		b, err := s.headers.read(s.in, f)
		if err != nil {
			return err
		}
		return s.gotHeaders(b)
	case *http2.RSTStreamFrame:
		return s.gotReset(f.StreamID, f.ErrCode)
	case *http2.WindowUpdateFrame:
		return s.gotWindow(f.StreamID, int64(f.Increment))
	case *http2.PushPromiseFrame:
		return protocolError("peer pushes")
	}
	if !s.quiet.spend() {
		return fmt.Errorf("%w: with %s frames", errCalm, fh.Type)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return s.gotSettingsLocked(f)
		}
	case *http2.PingFrame:
		s.gotPingLocked(f)
	case *http2.GoAwayFrame:
		s.gotGoAwayLocked(f)
	}
	return nil // PRIORITY and what is unknown: RFC 9113 section 5.5
}

func (s *session) gotSettingsLocked(f *http2.SettingsFrame) error {
	if f.HasDuplicates() {
		return protocolError("duplicate settings")
	}
	err := f.ForeachSetting(func(set http2.Setting) error {
		if err := set.Valid(); err != nil {
			return err
		}
		switch set.ID {
		case http2.SettingMaxFrameSize:
			s.peerFrame = int(set.Val)
		case http2.SettingMaxConcurrentStreams:
			s.peerStreams = set.Val
		case http2.SettingInitialWindowSize:
			return s.moveWindowsLocked(int64(set.Val))
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.enc.WriteSettingsAck()
	s.chargeLocked(frameHeader)
	return nil
}

// moveWindowsLocked changes the windows of all streams, possibly to below zero
// (RFC 9113 section 6.9.2).
func (s *session) moveWindowsLocked(initial int64) error {
	delta := initial - s.peerWindow
	s.peerWindow = initial
	for _, st := range s.streams {
		if st.sendWindow += delta; st.sendWindow > maxWindow {
			return connectionError{http2.ErrCodeFlowControl, "window overflows"}
		}
		st.writable.Broadcast()
	}
	return nil
}

func (s *session) gotPingLocked(f *http2.PingFrame) {
	if !f.IsAck() {
		s.enc.WritePing(true, f.Data)
		s.chargeLocked(frameHeader + 8)
		return
	}
	if f.Data == drainPing {
		select {
		case <-s.drainPong:
		default:
			close(s.drainPong)
		}
	}
}

// gotGoAwayLocked: the peer serves no stream beyond the last that it names.
func (s *session) gotGoAwayLocked(f *http2.GoAwayFrame) {
	if s.server {
		return // what a client will not serve are pushes; there are none
	}
	s.peerGone = true
	for id, st := range s.streams {
		if id > f.LastStreamID {
			st.endLocked(fmt.Errorf("%w: peer is going away (%s)", ErrNotProcessed, f.ErrCode))
		}
	}
	s.leftLocked()
}

func (s *session) gotWindow(id uint32, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A WINDOW_UPDATE for every 256 bytes that were sent, and some: nobody has
	// reason to send more.
	s.updates.earn(float64(s.dataSent) / 256)
	s.dataSent = 0
	if !s.updates.spend() {
		return fmt.Errorf("%w: with WINDOW_UPDATE frames", errCalm)
	}
	if id == 0 {
		if s.sendWindow += n; s.sendWindow > maxWindow {
			return connectionError{http2.ErrCodeFlowControl, "window overflows"}
		}
		s.wakeWriterLocked()
		return nil
	}
	st := s.streams[id]
	if st == nil {
		return s.checkIDLocked(id)
	}
	if st.sendWindow += n; st.sendWindow > maxWindow {
		return s.breakStreamLocked(id, http2.ErrCodeFlowControl)
	}
	st.writable.Broadcast()
	return nil
}

func (s *session) gotReset(id uint32, code http2.ErrCode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil {
		return s.checkIDLocked(id)
	}
	unused := s.server && !st.answered
	var err error = &ResetError{Code: code, Remote: true}
	if code == http2.ErrCodeRefusedStream && !s.server && !st.answered {
		err = fmt.Errorf("%w: %w", ErrNotProcessed, err)
	}
	st.endLocked(err)
	if unused && !s.resets.spend() {
		return fmt.Errorf("%w: with requests that it resets", errCalm)
	}
	return nil
}

// checkIDLocked is for a frame on a stream that is not open: fine if it was,
// but not if it never was (RFC 9113 section 5.1).
func (s *session) checkIDLocked(id uint32) error {
	opened := id%2 == 1 && id < s.nextID
	if s.server {
		opened = id%2 == 1 && id <= s.lastID
	}
	if !opened {
		return protocolError("frame on stream %d, which is idle", id)
	}
	return nil
}

// breakStream resets a stream on which the peer broke the rules. Peers that
// make us do so too often are sent away, as if they had reset it themselves.
func (s *session) breakStream(id uint32, code http2.ErrCode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.breakStreamLocked(id, code)
}

func (s *session) breakStreamLocked(id uint32, code http2.ErrCode) error {
	if !s.resets.spend() {
		return fmt.Errorf("%w: with broken streams", errCalm)
	}
	s.enc.WriteRSTStream(id, code)
	s.chargeLocked(frameHeader + 4)
	if st := s.streams[id]; st != nil {
		st.endLocked(&ResetError{Code: code})
	}
	return nil
}

// gotHeaders is a request, on a server, or its answer, on a client.
func (s *session) gotHeaders(b *block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[b.streamID]
	switch {
	case st != nil && (s.server || st.answered):
		// Not on a tunnelled connection (RFC 9113 section 8.5).
		return s.breakStreamLocked(b.streamID, http2.ErrCodeProtocol)
	case st != nil:
		return st.gotAnswerLocked(b)
	case s.server && b.streamID%2 == 1 && b.streamID > s.lastID:
		s.lastID = b.streamID
		return s.gotRequestLocked(b)
	}
	if err := s.checkIDLocked(b.streamID); err != nil {
		return err
	}
	if s.server {
		return s.breakStreamLocked(b.streamID, http2.ErrCodeStreamClosed)
	}
	return nil // the answer to what this side gave up meanwhile
}
