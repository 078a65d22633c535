package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Request asks for a tunnelled connection.
type Request struct {
	// Authority is the address that the peer shall connect.
	Authority netip.AddrPort
	// Header is sent along: baggage, forwarded, traceparent.
	Header http.Header
}

// Client is the opening side of a tunnel.
type Client struct {
	s *session
}

// NewClient starts a tunnel over conn, an established TLS connection that it
// takes over. It fails if the peer did not negotiate HTTP/2; conn is then the
// caller's to close.
func NewClient(conn net.Conn, opts Options) (*Client, error) {
	s, err := newSession(conn, false, opts, nil)
	if err != nil {
		return nil, err
	}
	return &Client{s: s}, nil
}

// Open asks for a connection to r.Authority and returns once the peer has
// accepted.
//
// Errors: [*StatusError] if the peer refused; [ErrNotProcessed] if another
// tunnel may be tried, nothing having been done; that of ctx.
func (c *Client) Open(ctx context.Context, r Request) (Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, ready, err := c.s.open(r)
	if err != nil {
		return nil, fmt.Errorf("open stream to %s: %w", r.Authority, err)
	}
	select {
	case <-ready:
	case <-ctx.Done():
		st.Close()
		return nil, fmt.Errorf("open stream to %s: %w", r.Authority, ctx.Err())
	}
	if st.answer != nil {
		st.Close()
		return nil, fmt.Errorf("open stream to %s: %w", r.Authority, st.answer)
	}
	st.opened()
	return st, nil
}

// opened lets go of what only the opening needs.
func (st *stream) opened() {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.ready = nil
}

// open sends the request; ready is closed once there is an answer.
func (s *session) open(r Request) (st *stream, ready <-chan struct{}, err error) {
	authority := netip.AddrPortFrom(r.Authority.Addr().Unmap(), r.Authority.Port()).String()
	if !validAuthority(authority) {
		return nil, nil, fmt.Errorf("invalid authority %q", authority)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.canOpenLocked(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotProcessed, err)
	}
	err = s.headersLocked(s.nextID, false, []hpack.HeaderField{
		{Name: ":method", Value: http.MethodConnect},
		{Name: ":authority", Value: authority},
	}, r.Header)
	if err != nil {
		return nil, nil, err
	}
	st = s.newStreamLocked(s.nextID)
	ready = st.ready
	s.nextID += 2
	s.flushLocked()
	return st, ready, nil
}

var (
	errDraining = errors.New("tunnel is draining")
	errFull     = errors.New("tunnel has as many streams as the peer allows")
)

func (s *session) canOpenLocked() error {
	switch {
	case s.err != nil:
		return fmt.Errorf("%w: %w", ErrTunnelClosed, s.err)
	case s.draining, s.peerGone, s.nextID > maxStreamID:
		return errDraining
	case uint64(len(s.streams)) >= uint64(s.peerStreams):
		return errFull
	}
	return nil
}

// headersLocked queues a HEADERS frame.
func (s *session) headersLocked(id uint32, end bool, fields []hpack.HeaderField, h http.Header) error {
	s.hpackBuf.Reset()
	if err := appendHeaders(s.hpack, fields, h); err != nil {
		return err
	}
	if s.hpackBuf.Len() > maxHeaderBlock {
		return fmt.Errorf("headers of %d bytes, more than %d", s.hpackBuf.Len(), maxHeaderBlock)
	}
	frame := header{length: s.hpackBuf.Len(), kind: http2.FrameHeaders, flags: http2.FlagHeadersEndHeaders, stream: id}
	if end {
		frame.flags |= http2.FlagHeadersEndStream
	}
	s.control = append(frame.append(s.control), s.hpackBuf.Bytes()...)
	return nil
}

// gotAnswerLocked takes the peer's answer to a request.
func (st *stream) gotAnswerLocked(b *block) error {
	status, err := strconv.Atoi(b.pseudo["status"])
	switch {
	case b.malformed != nil || err != nil || len(b.pseudo) != 1 || status < 100 || status > 599,
		status < 200 && b.ended:
		return st.s.breakStreamLocked(st.id, http2.ErrCodeProtocol)
	case status < 200:
		return nil // informational; the answer follows
	}
	st.answered = true
	if status != http.StatusOK {
		st.answer = &StatusError{Code: status, Reason: printable(b.header.Get(HeaderReason))}
	}
	if b.ended {
		st.remoteDone = true
		st.inbox.finish(io.EOF)
		st.doneLocked()
	}
	close(st.ready)
	return nil
}

// CanOpen reports whether Open would be tried: the tunnel is live, is not
// draining, and the peer's limit of streams is not reached.
func (c *Client) CanOpen() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.canOpenLocked() == nil
}

// Streams is how many streams are open or being opened.
func (c *Client) Streams() int {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return len(c.s.streams)
}

// Limit is how many streams the peer allows at once, as far as it has said.
func (c *Client) Limit() int {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return int(min(c.s.peerStreams, maxStreamID/2))
}

// Rate is how many bytes a second the tunnel carries, both ways, as of late.
func (c *Client) Rate() float64 {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.rate.perSecond()
}

// Done is closed when the tunnel has ended and its goroutines with it.
func (c *Client) Done() <-chan struct{} { return c.s.done }

// Err is why the tunnel ended; nil while it lives, and if it ended as this side
// wanted or with no stream in it.
func (c *Client) Err() error { return c.s.failure() }

// Shutdown opens no more streams and ends the tunnel once the open ones have
// ended, or when ctx does: it then returns ctx's error.
func (c *Client) Shutdown(ctx context.Context) error {
	c.s.mu.Lock()
	c.s.drainLocked()
	c.s.mu.Unlock()
	defer c.s.close()
	select {
	case <-c.s.idle:
	case <-c.s.done:
	case <-ctx.Done():
		return fmt.Errorf("shut down tunnel: %w", ctx.Err())
	}
	return nil
}

// Close ends the tunnel and every stream in it.
func (c *Client) Close() error {
	c.s.close()
	return nil
}
