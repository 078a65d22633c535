package hbone

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// session is one side of a tunnel.
//
// Two goroutines serve it: one reads frames (read.go), one writes what has been
// queued. Its lock comes before that of a stream's inbox.
type session struct {
	// fixed after newSession
	conn     net.Conn
	server   bool
	opts     Options
	incoming func(*stream, *block) // server: a request; called with mu held
	br       *bufio.Reader
	done     chan struct{} // closed when both goroutines have ended

	// owned by the reading goroutine
	in      *http2.Framer
	headers *headerReader
	quiet   budget
	updates budget

	// frames counts what was read: the peer lives as long as it grows.
	frames atomic.Uint64

	mu sync.Mutex
	// guarded by mu: writing
	outCond    *sync.Cond // for the writing goroutine
	out        []byte     // frames to be written
	outControl int        // bytes of out that answer the peer
	enc        *http2.Framer
	hpackBuf   bytes.Buffer
	hpack      *hpack.Encoder
	waiting    []*stream // writers that wait for room, first come first served
	turn       *stream   // the writer that was woken to use the room
	dataSent   int       // since the last WINDOW_UPDATE was read

	// guarded by mu: the peer's settings and windows
	sendWindow  int64
	peerWindow  int64 // initial window of a stream
	peerFrame   int
	peerStreams uint32

	// guarded by mu: receiving
	recvWindow int64
	buffered   int64 // received and not read, all streams
	resets     budget

	// guarded by mu: streams and the end
	streams   map[uint32]*stream
	nextID    uint32        // client: of the next stream to open
	lastID    uint32        // server: the highest that the peer opened
	limitID   uint32        // server: what GOAWAY promised to serve
	handlers  int           // server: that have not returned
	draining  bool          // no new streams
	idle      chan struct{} // closed when draining and no stream is left
	peerGone  bool          // client: the peer sent GOAWAY
	err       error         // why the session ended
	cut       int           // how many streams it had then
	pingTimer *time.Timer
	pingSent  time.Time
	pingFrame uint64 // frames when the ping was sent
	drainPong chan struct{}
}

// newSession takes over conn and starts its goroutines.
func newSession(conn net.Conn, server bool, opts Options, incoming func(*stream, *block)) (*session, error) {
	if t, ok := conn.(*tls.Conn); ok {
		if state := t.ConnectionState(); state.HandshakeComplete && state.NegotiatedProtocol != "h2" {
			return nil, fmt.Errorf("peer negotiated protocol %q, want h2", state.NegotiatedProtocol)
		}
	}
	s := &session{
		conn: conn, server: server, opts: opts, incoming: incoming,
		br:   bufio.NewReaderSize(conn, 4<<10),
		done: make(chan struct{}), idle: make(chan struct{}), drainPong: make(chan struct{}),
		quiet: quietBudget(), updates: updateBudget(), resets: resetBudget(),
		sendWindow: initialWindow, peerWindow: initialWindow, peerFrame: minMaxFrame, peerStreams: assumedStreams,
		recvWindow: tunnelWindow,
		streams:    map[uint32]*stream{}, nextID: 1, limitID: maxStreamID,
	}
	s.outCond = sync.NewCond(&s.mu)
	s.enc = http2.NewFramer((*queue)(s), nil)
	s.in = http2.NewFramer(io.Discard, s.br)
	s.hpack = hpack.NewEncoder(&s.hpackBuf)
	s.hpack.SetMaxDynamicTableSizeLimit(0)
	settings, maxList := clientSettings(), clientHeaderList
	if server {
		settings, maxList = serverSettings(), serverHeaderList
	}
	s.headers = newHeaderReader(maxList)

	s.mu.Lock()
	defer s.mu.Unlock()
	if !server {
		s.queueLocked([]byte(http2.ClientPreface))
	}
	s.enc.WriteSettings(settings...)
	s.enc.WriteWindowUpdate(0, tunnelWindow-initialWindow)
	s.pingTimer = time.AfterFunc(s.opts.pingEvery(), s.keepAlive)
	readDone := make(chan struct{})
	go func() {
		defer close(readDone)
		s.fail(s.read())
	}()
	go func() {
		defer close(s.done)
		s.write()
		<-readDone
		s.conn.Close()
	}()
	return s, nil
}

// fail ends the session because of err, and every stream with it.
func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
}

func (s *session) failLocked(err error) {
	if s.err != nil {
		return
	}
	if errors.Is(err, io.EOF) {
		// Nobody may take a cut tunnel for the end of a stream.
		err = io.ErrUnexpectedEOF
	}
	s.err, s.cut = err, len(s.streams)
	for _, st := range s.streams {
		st.endLocked(fmt.Errorf("%w: %w", ErrTunnelClosed, err))
	}
	s.pingTimer.Stop()
	var code connectionError
	if errors.As(err, &code) {
		s.enc.WriteGoAway(s.lastID, code.Code, []byte(printable(err.Error())))
	}
	s.outCond.Broadcast()
	if errors.Is(err, ErrPeerSilent) {
		if t, ok := s.conn.(*tls.Conn); ok {
			t.NetConn().Close() // no close_notify to nobody
			return
		}
		s.conn.Close()
		return
	}
	timeout := flushTimeout
	if s.cut == 0 {
		timeout = lastBytesTimeout
	}
	s.conn.SetDeadline(time.Now().Add(timeout))
}

// The ends of a session that one side wanted.
var (
	errClosed   = errors.New("closed by this side")
	errPeerGone = errors.New("peer went away")
)

// close ends the session in order, and what streams there are at once.
func (s *session) close() {
	s.mu.Lock()
	if s.err == nil {
		s.enc.WriteGoAway(s.lastID, http2.ErrCodeNo, nil)
	}
	s.failLocked(errClosed)
	s.mu.Unlock()
	<-s.done
}

// failure is the session's end as its user sees it: nil unless streams were cut
// short, or rules broken.
func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil || errors.Is(s.err, errClosed) {
		return nil
	}
	if s.cut == 0 && !errors.As(s.err, new(connectionError)) && !errors.Is(s.err, ErrPeerSilent) {
		return nil
	}
	return fmt.Errorf("%w with %d streams: %w", ErrTunnelClosed, s.cut, s.err)
}

// drainLocked lets no more streams begin.
func (s *session) drainLocked() {
	s.draining = true
	s.leftLocked()
}

// leftLocked sees whether a session that opens no more streams is empty.
func (s *session) leftLocked() {
	if len(s.streams) > 0 || s.handlers > 0 {
		return
	}
	if s.draining {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
	if s.peerGone {
		s.failLocked(errPeerGone)
	}
}

// keepAlive asks the peer for a sign of life, and ends the session without one.
func (s *session) keepAlive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	every, timeout := s.opts.pingEvery(), s.opts.pingTimeout()
	next := every
	switch read := s.frames.Load(); {
	case s.pingSent.IsZero() || read != s.pingFrame:
		s.pingSent, s.pingFrame = time.Now(), read
		s.enc.WritePing(false, [8]byte{'a', 'l', 'i', 'v', 'e'})
	case time.Since(s.pingSent) >= timeout:
		s.failLocked(fmt.Errorf("%w for %s", ErrPeerSilent, time.Since(s.pingSent).Round(time.Second)))
		return
	default:
		next = min(every, timeout-time.Since(s.pingSent))
	}
	s.pingTimer.Reset(next)
}

func (o Options) pingEvery() time.Duration   { return orDefault(o.PingEvery, defaultPingEvery) }
func (o Options) pingTimeout() time.Duration { return orDefault(o.PingTimeout, defaultPingTimeout) }
func (o Options) drainTimeout() time.Duration {
	return max(0, orDefault(o.DrainTimeout, defaultDrainTimeout))
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
