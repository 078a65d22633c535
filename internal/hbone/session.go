package hbone

import (
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
// One goroutine reads (read.go). What is to be written is queued, and written by
// whoever finds nobody writing (write.go). The session's lock comes before that
// of a stream's inbox.
type session struct {
	// fixed after newSession
	conn     net.Conn
	wire     *Wire // beneath conn; nil if there is none
	server   bool
	opts     Options
	incoming func(*stream, *block) // server: a request; called with mu held
	done     chan struct{}         // closed when reading and writing have ended

	// owned by the reading goroutine
	parser  parser
	headers *headerReader
	quiet   budget
	updates budget

	// frames counts what was read: the peer lives as long as it grows.
	frames atomic.Uint64

	mu sync.Mutex
	// guarded by mu: writing
	control  []byte    // whole frames without data, which go first
	urgent   []*Buffer // data of those who write little
	bulk     []*Buffer // data of those who write much
	answers  int       // bytes of control that answer the peer
	bulkSize int       // payload in bulk
	flushing bool      // somebody writes, and will write what is queued meanwhile
	waiting  []*stream // writers that wait for room, first come first served
	turn     *stream   // the writer that was woken to use the room
	dataSent int       // since the last WINDOW_UPDATE was read
	moved    int       // payload, both ways, that rate does not have yet
	hpackBuf bytes.Buffer
	hpack    *hpack.Encoder

	// guarded by mu: the peer's settings and windows
	sendWindow  int64
	peerWindow  int64 // initial window of a stream
	peerFrame   int
	peerStreams uint32

	// guarded by mu: receiving
	recvWindow int64
	buffered   int64 // received and not read, all streams
	grown      int64 // by how much the windows of all streams are larger than at first
	resets     budget

	// guarded by mu: streams and the end
	streams   map[uint32]*stream
	late      lateStreams
	nextID    uint32        // client: of the next stream to open
	lastID    uint32        // server: the highest that the peer opened
	limitID   uint32        // server: what GOAWAY promised to serve
	handlers  int           // server: that have not returned
	queued    []queued      // server: requests without a handler yet
	draining  bool          // no new streams
	idle      chan struct{} // closed when draining and no stream is left
	peerGone  bool          // client: the peer sent GOAWAY
	err       error         // why the session ended
	cut       int           // how many streams it had then
	written   chan struct{} // closed when the last word is written, after err
	drainPong chan struct{}
	unused    *time.Timer   // server: runs while there is no stream
	stale     chan struct{} // server: closed when it has run out

	// guarded by mu: signs of life
	pingTimer  *time.Timer
	pingSent   time.Time // zero if none waits for its answer
	seenFrames uint64    // frames when it was last looked
	rate       rate
}

// newSession takes over conn and starts its reading goroutine.
func newSession(conn net.Conn, server bool, opts Options, incoming func(*stream, *block)) (*session, error) {
	if t, ok := conn.(*tls.Conn); ok {
		if state := t.ConnectionState(); state.HandshakeComplete && state.NegotiatedProtocol != "h2" {
			return nil, fmt.Errorf("peer negotiated protocol %q, want h2", state.NegotiatedProtocol)
		}
	}
	s := makeSession(conn, server, opts, incoming)
	if s.wire != nil {
		s.wire.batch()
		if err := s.wire.tune(); err != nil {
			return nil, fmt.Errorf("tune the tunnel's socket: %w", err)
		}
	}
	s.start()
	return s, nil
}

func makeSession(conn net.Conn, server bool, opts Options, incoming func(*stream, *block)) *session {
	s := &session{
		conn: conn, wire: wireOf(conn), server: server, opts: opts, incoming: incoming,
		done: make(chan struct{}), idle: make(chan struct{}), drainPong: make(chan struct{}), stale: make(chan struct{}), written: make(chan struct{}),
		quiet: quietBudget(), updates: updateBudget(), resets: resetBudget(),
		sendWindow: initialWindow, peerWindow: initialWindow, peerFrame: minMaxFrame, peerStreams: assumedStreams,
		recvWindow: tunnelWindow,
		streams:    map[uint32]*stream{}, nextID: 1, limitID: maxStreamID,
	}
	s.hpack = hpack.NewEncoder(&s.hpackBuf)
	s.hpack.SetMaxDynamicTableSizeLimit(0)
	maxList := clientHeaderList
	if server {
		maxList = serverHeaderList
	} else {
		s.parser.preface = len(http2.ClientPreface) // a server's is no other frame
	}
	s.parser.first = true
	s.headers = newHeaderReader(maxList)
	return s
}

// start says the first words, and begins to read.
func (s *session) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	settings := serverSettings()
	if !s.server {
		s.control = append(s.control, http2.ClientPreface...)
		settings = clientSettings()
	}
	s.control = appendSettings(s.control, settings)
	s.control = appendWindowUpdate(s.control, 0, tunnelWindow-initialWindow)
	s.flushSoonLocked()
	s.pingTimer = time.AfterFunc(s.opts.pingEvery(), s.keepAlive)
	if s.server {
		s.unused = time.AfterFunc(unusedTimeout, s.grownStale)
	}
	go func() {
		defer close(s.done)
		s.fail(s.read())
		<-s.written
		s.conn.Close()
	}()
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
	if s.unused != nil {
		s.unused.Stop()
	}
	var code connectionError
	if errors.As(err, &code) {
		s.control = appendGoAway(s.control, s.lastID, code.Code, printable(err.Error()))
	}
	s.wakeWriterLocked()
	if errors.Is(err, ErrPeerSilent) {
		s.closeUnderneath() // no close_notify to nobody
	} else {
		timeout := flushTimeout
		if s.cut == 0 {
			timeout = lastBytesTimeout
		}
		s.conn.SetDeadline(time.Now().Add(timeout))
	}
	s.flushSoonLocked() // which ends the writing
}

// closeUnderneath closes the connection without a word to the peer.
func (s *session) closeUnderneath() {
	if t, ok := s.conn.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	s.conn.Close()
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
		s.control = appendGoAway(s.control, s.lastID, http2.ErrCodeNo, "")
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
	if s.unused != nil && s.err == nil {
		s.unused.Reset(unusedTimeout)
	}
}

// grownStale has Serve end a tunnel that is still without a stream.
func (s *session) grownStale() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handlers > 0 || s.err != nil {
		return
	}
	select {
	case <-s.stale:
	default:
		close(s.stale)
	}
}

// keepAlive asks a silent peer for a sign of life, and ends the session without
// one. Where either side talks, the other one's talking answers.
func (s *session) keepAlive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	every, timeout := s.opts.pingEvery(), s.opts.pingTimeout()
	next := every
	switch read := s.frames.Load(); {
	case read != s.seenFrames:
		s.seenFrames, s.pingSent = read, time.Time{}
	case s.pingSent.IsZero():
		s.pingSent = time.Now()
		s.control = appendPing(s.control, false, [8]byte{'a', 'l', 'i', 'v', 'e'})
		s.flushSoonLocked()
		next = min(every, timeout)
	case time.Since(s.pingSent) >= timeout:
		s.failLocked(fmt.Errorf("%w for %s", ErrPeerSilent, (every + timeout).Round(time.Second)))
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
