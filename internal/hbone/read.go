package hbone

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// plainBuffers are for what TLS has opened: about a large frame.
var plainBuffers = sync.Pool{New: func() any { b := make([]byte, 17*recordSize); return &b }}

// parser is where in the stream of frames the reading goroutine is.
type parser struct {
	preface int // bytes of it that have come; servers only
	first   bool
	head    [frameHeader]byte
	got     int // of head
	header  header
	left    int // of the frame's payload

	// Of a frame that carries no data: its payload, until it is whole.
	payload []byte
	// Of a DATA frame: whose it is (nil: nobody's), and its padding.
	st     *stream
	padded bool // the length of the padding is still to come
	pad    int
}

// read reads frames until the connection ends, and returns why.
func (s *session) read() error {
	if s.server {
		// Whoever completes a TLS handshake speaks soon, or not at all.
		s.conn.SetReadDeadline(time.Now().Add(prefaceTimeout))
	}
	if s.wire == nil {
		return s.readConn()
	}
	for {
		if err := s.wire.await(); err != nil {
			return s.readError(err)
		}
		if err := s.readWire(); err != nil {
			return err
		}
	}
}

// readWire reads what TLS records there are, without waiting: not for one with
// data in it either, when those that are here only change keys or carry tickets.
func (s *session) readWire() error {
	buffer := plainBuffers.Get().(*[]byte)
	defer plainBuffers.Put(buffer)
	n := 0
	var readErr error
	s.wire.noWait = true
	for readErr == nil && s.wire.ready() && len(*buffer)-n >= recordSize {
		var k int
		k, readErr = s.conn.Read((*buffer)[n:])
		n += k
	}
	s.wire.noWait = false
	if errors.Is(readErr, errNoRecord) {
		readErr = nil
	}
	if err := s.feed((*buffer)[:n]); err != nil {
		return err
	}
	if readErr != nil {
		return s.readError(readErr)
	}
	return nil
}

// readConn reads a connection without a Wire.
func (s *session) readConn() error {
	buffer := make([]byte, recordSize)
	for {
		n, err := s.conn.Read(buffer)
		if err := s.feed(buffer[:n]); err != nil {
			return err
		}
		if err != nil {
			return s.readError(err)
		}
	}
}

// readError is why nothing more can be read. The only deadline that comes while a
// session lives is that of the first words.
func (s *session) readError(err error) error {
	if s.parser.first && errors.Is(err, os.ErrDeadlineExceeded) {
		return connectionError{http2.ErrCodeSettingsTimeout, SlowPreface, "peer does not begin with HTTP/2 in time"}
	}
	return fmt.Errorf("read: %w", err)
}

// feed serves the frames in p, which may begin and end anywhere, and has what is
// to be answered written.
func (s *session) feed(p []byte) error {
	var err error
	for len(p) > 0 && err == nil {
		p, err = s.parse(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate.add(&s.moved)
	if s.unwrittenLocked() {
		s.flushSoonLocked()
	}
	return err
}

// parse takes what it can use of p and returns the rest.
func (s *session) parse(p []byte) ([]byte, error) {
	r := &s.parser
	switch {
	case r.preface < len(http2.ClientPreface):
		n := min(len(p), len(http2.ClientPreface)-r.preface)
		if string(p[:n]) != http2.ClientPreface[r.preface:r.preface+n] {
			return nil, protocolError("peer does not speak HTTP/2")
		}
		r.preface += n
		return p[n:], nil
	case r.got < frameHeader:
		n := copy(r.head[r.got:], p)
		if r.got += n; r.got < frameHeader {
			return nil, nil
		}
		r.header = parseHeader(r.head[:])
		r.left = r.header.length
		if err := s.begin(r.header); err != nil {
			return nil, err
		}
		p = p[n:]
	}
	n := min(r.left, len(p))
	r.left -= n
	var err error
	if r.header.kind == http2.FrameData {
		err = s.gotData(p[:n])
	} else {
		r.payload = append(r.payload, p[:n]...)
	}
	if err == nil && r.left == 0 {
		err = s.end(r.header)
		r.got = 0
	}
	return p[n:], err
}

// begin looks at a frame's header.
func (s *session) begin(h header) error {
	continues := s.headers.block != nil
	switch {
	case h.length > maxReadFrame:
		return sizeError(h)
	case s.parser.first && (h.kind != http2.FrameSettings || h.flags.Has(http2.FlagSettingsAck)):
		return protocolError("first frame is %s, not SETTINGS", h.kind)
	case continues != (h.kind == http2.FrameContinuation) || continues && s.headers.block.streamID != h.stream:
		return protocolError("%s frame on stream %d, out of order", h.kind, h.stream)
	}
	if err := h.check(); err != nil {
		return err
	}
	if h.kind == http2.FrameData {
		return s.beginData(h)
	}
	if h.length > maxControlFrame || h.kind == http2.FrameSettings && h.length > maxSettingsFrame {
		return flood(floodOf(h.kind), fmt.Sprintf("a %s frame of %d bytes", h.kind, h.length))
	}
	return nil
}

// end serves a frame that is here whole.
func (s *session) end(h header) error {
	var err error
	if h.kind == http2.FrameData {
		s.endData(h)
	} else {
		err = s.gotControl(h, s.parser.payload)
		s.parser.payload = s.parser.payload[:0]
		if cap(s.parser.payload) > keptControl {
			s.parser.payload = nil // an idle tunnel keeps no big buffer
		}
	}
	if s.parser.first {
		s.parser.first = false
		s.endPreface()
	}
	s.frames.Add(1)
	return err
}

// endPreface lets the connection be silent, if it is not ending.
func (s *session) endPreface() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.conn.SetReadDeadline(time.Time{})
	}
}

// gotControl serves a frame that carries no data.
func (s *session) gotControl(h header, payload []byte) error {
	switch h.kind {
	case http2.FrameHeaders:
		fragment, err := fragmentOf(h, payload)
		if err != nil {
			return err
		}
		s.headers.begin(h, fragment)
		return s.gotFragment(h)
	case http2.FrameContinuation:
		if err := s.headers.more(payload); err != nil {
			return err
		}
		return s.gotFragment(h)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch h.kind {
	case http2.FrameRSTStream:
		return s.gotResetLocked(h.stream, parseReset(payload))
	case http2.FrameWindowUpdate:
		return s.gotWindowLocked(h.stream, payload)
	}
	if !s.quiet.spend() {
		return flood(floodOf(h.kind), h.kind.String()+" frames")
	}
	switch h.kind {
	case http2.FrameSettings:
		if !h.flags.Has(http2.FlagSettingsAck) {
			return s.gotSettingsLocked(payload)
		}
	case http2.FramePing:
		s.gotPingLocked(h, [8]byte(payload))
	case http2.FrameGoAway:
		s.gotGoAwayLocked(parseGoAway(payload))
	case http2.FramePriority:
		if h.length != 5 {
			return s.breakStreamLocked(h.stream, http2.ErrCodeFrameSize)
		}
	}
	return nil // what is unknown: RFC 9113 section 5.5
}

// gotFragment waits for the rest of a block of headers, or serves it.
func (s *session) gotFragment(h header) error {
	if !h.flags.Has(http2.FlagHeadersEndHeaders) {
		return nil
	}
	b, err := s.headers.end()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gotHeadersLocked(b)
}

// gotHeadersLocked is a request, on a server, or its answer, on a client.
func (s *session) gotHeadersLocked(b *block) error {
	st := s.streams[b.streamID]
	switch {
	case st != nil && (s.server || st.answered):
		// Not on a tunnelled connection (RFC 9113 section 8.5), nor in a half that
		// was closed (section 5.1).
		code := http2.ErrCodeProtocol
		if st.remoteDone {
			code = http2.ErrCodeStreamClosed
		}
		return s.breakStreamLocked(b.streamID, code)
	case st != nil:
		return st.gotAnswerLocked(b)
	case s.server && b.streamID%2 == 1 && b.streamID > s.lastID:
		s.lastID = b.streamID
		return s.gotRequestLocked(b)
	}
	if err := s.checkIDLocked(b.streamID); err != nil {
		return err
	}
	switch {
	case !s.late.maybe(b.streamID):
		// It was closed, or passed over (RFC 9113 section 5.1.1).
		return protocolError("HEADERS frame on stream %d, which is closed", b.streamID)
	case s.server && !s.resets.spend():
		return flood(ResetFlood, "headers on streams that were reset")
	}
	return nil // on a client, the answer to what this side gave up meanwhile
}

func (s *session) gotResetLocked(id uint32, code http2.ErrCode) error {
	st := s.streams[id]
	if st == nil {
		return s.checkIDLocked(id)
	}
	unused := s.server && !st.answered
	var err error = &ResetError{Code: code, Remote: true}
	if code == http2.ErrCodeRefusedStream && !s.server && !st.answered {
		err = fmt.Errorf("%w: %w", ErrNotProcessed, err)
	}
	s.unqueueLocked(st)
	st.remoteDone = true
	st.endLocked(err)
	if unused && !s.resets.spend() {
		return flood(ResetFlood, "requests that it resets")
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

// breakStreamLocked resets a stream on which the peer broke the rules. Peers
// that make us do so too often are sent away, as if they had reset it themselves.
func (s *session) breakStreamLocked(id uint32, code http2.ErrCode) error {
	if !s.resets.spend() {
		return flood(ResetFlood, "broken streams")
	}
	s.resetLocked(id, code)
	s.chargeLocked(frameHeader + 4)
	if st := s.streams[id]; st != nil {
		st.endLocked(&ResetError{Code: code})
	}
	return nil
}

// gotWindowLocked lets more be sent.
func (s *session) gotWindowLocked(id uint32, payload []byte) error {
	// A WINDOW_UPDATE for every 256 bytes that were sent, and some: nobody has
	// reason to send more.
	s.updates.earn(float64(s.dataSent) / 256)
	s.dataSent = 0
	if !s.updates.spend() {
		return flood(WindowUpdateFlood, "WINDOW_UPDATE frames")
	}
	increment, err := parseWindowUpdate(payload)
	broken := errors.Is(err, errZeroIncrement)
	if id == 0 {
		if s.sendWindow += int64(increment); broken {
			return protocolError("WINDOW_UPDATE of zero")
		}
		if s.sendWindow > maxWindow {
			return connectionError{http2.ErrCodeFlowControl, ProtocolError, "window overflows"}
		}
		s.wakeWriterLocked()
		return nil
	}
	st := s.streams[id]
	if st == nil {
		return s.checkIDLocked(id)
	}
	if broken {
		return s.breakStreamLocked(id, http2.ErrCodeProtocol)
	}
	if st.sendWindow += int64(increment); st.sendWindow > maxWindow {
		return s.breakStreamLocked(id, http2.ErrCodeFlowControl)
	}
	st.wakeLocked()
	return nil
}
