package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// serve1 carries the requests of a connection that speaks HTTP/1.1, one after the other.
func (c *client) serve1(conn net.Conn) {
	reader := http1.NewReader(conn)
	defer reader.Free()
	defer conn.Close()
	idle := newIdleness(c.draining, conn)
	defer idle.end()
	for {
		if !idle.wait(reader) {
			linger(conn)
			return
		}
		if !reader.HasHead() {
			idle.limit(headTimeout)
		}
		head, err := reader.Head()
		w := &responder1{conn: conn, raw: reader, keep: true, chunks: true, draining: c.draining}
		var r *Request
		if err == nil {
			r, err = parseRequest(head, w)
		}
		if err != nil {
			c.malformed(w, err)
			return
		}
		body := c.body1(r, reader, conn, w)
		if body != nil && !r.inline || r.Upgrade != "" {
			idle.lift() // it may take as long as it likes
		}
		ended := c.handle(r, w)
		w.free()
		if w.taken {
			return
		}
		if !ended {
			return
		}
		if body != nil && !body.Done() {
			// Answered without it; the next request is behind it.
			idle.limit(lingerFor)
			io.CopyN(io.Discard, body, lingerBytes)
			w.keep = w.keep && body.Done()
		}
		if !w.keep {
			linger(conn)
			return
		}
	}
}

// parseRequest reads the head of a request; what it says of the connection goes to w.
func parseRequest(head []byte, w *responder1) (*Request, error) {
	in, err := http1.ParseRequest(head)
	if err != nil {
		return nil, err
	}
	w.chunks, w.head, w.framing = in.Minor > 0, in.Method == "HEAD", in.Framing
	w.keep = w.keep && !in.Close
	r := &Request{Scheme: "http", Version: 1, Upgrade: in.Upgrade, length: in.Length}
	return r, r.see(request.Read(in.Method, in.Host, in.Target, http1.EndToEnd(in.Fields)))
}

const (
	// lingerFor and lingerBytes bound what is still read of a client whose connection
	// ends: one that is reset might not read its last response.
	lingerFor   = time.Second
	lingerBytes = 256 << 10
)

// linger ends a connection in order.
func linger(conn net.Conn) {
	if c, ok := conn.(halfCloser); ok {
		c.CloseWrite()
	}
	conn.SetReadDeadline(time.Now().Add(lingerFor))
	io.CopyN(io.Discard, conn, lingerBytes)
}

// body1 has the request read its body from the connection.
func (c *client) body1(r *Request, reader *http1.Reader, conn net.Conn, w *responder1) *http1.Body {
	if w.framing == http1.None {
		return nil
	}
	body := http1.NewBody(reader, w.framing, r.length)
	r.body = body
	r.trailers = func() []http1.Field { return body.Trailers }
	r.inline = r.length >= 0 && r.length <= int64(reader.Buffered())
	r.stop = func() { conn.SetReadDeadline(time.Unix(1, 0)) }
	return body
}

// malformed answers what could not be read, and says so.
func (c *client) malformed(w *responder1, err error) {
	if errors.Is(err, io.EOF) {
		return
	}
	w.keep = false
	x := c.unread(&Request{Version: 1}, w)
	x.status, x.flag, x.detail = http.StatusBadRequest, flagMalformed, err.Error()
	if errors.Is(err, http1.ErrTooLong) {
		x.status = http.StatusRequestHeaderFieldsTooLarge
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, http1.ErrMalformed) && !errors.Is(err, http1.ErrTooLong) {
		x.status, x.flag = 0, flagClientGone
	} else if w.Head(x.status, nil, 0) == nil {
		w.End(nil)
		linger(w.conn)
	}
	c.engine.cfg.Telemetry.record(x)
	w.free()
}

// idleness is the time of a connection between two requests, which draining ends.
type idleness struct {
	draining context.Context
	conn     net.Conn
	stop     func() bool

	// until is the deadline of reading, zero for none; owned by the connection's
	// goroutine.
	until time.Time

	mu sync.Mutex
	// Guarded by mu.
	idle bool
}

// idleSlack is by how much longer than idleTimeout a connection may be kept: a deadline
// is not set anew with every request.
const idleSlack = time.Minute

// limit has reading end after a time, and lift never.
func (i *idleness) limit(d time.Duration) {
	i.until = time.Now().Add(d)
	i.conn.SetReadDeadline(i.until)
}

func (i *idleness) lift() {
	i.until = time.Time{}
	i.conn.SetReadDeadline(i.until)
}

func newIdleness(draining context.Context, conn net.Conn) *idleness {
	i := &idleness{draining: draining, conn: conn}
	i.stop = context.AfterFunc(draining, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.idle {
			conn.SetReadDeadline(time.Unix(1, 0))
		}
	})
	return i
}

func (i *idleness) end() { i.stop() }

// wait returns whether a request begins.
func (i *idleness) wait(r *http1.Reader) bool {
	if r.Buffered() > 0 {
		return true
	}
	i.mu.Lock()
	if time.Until(i.until) < idleTimeout {
		i.limit(idleTimeout + idleSlack)
	}
	i.idle = i.draining.Err() == nil
	begins := i.idle
	i.mu.Unlock()
	if begins {
		begins = r.Wait() == nil
	}
	i.mu.Lock()
	i.idle = false
	i.mu.Unlock()
	return begins
}

// responder1 answers by HTTP/1.1. It collects small pieces until Flush.
type responder1 struct {
	conn net.Conn
	// draining: another request is not to follow.
	draining context.Context
	// keep: another request may follow. chunks: the client understands them.
	keep, chunks bool
	// head: the request's method is HEAD.
	head bool
	// framing of the request's body.
	framing http1.Framing

	out      *[]byte
	response http1.Framing
	left     int64     // of a body of known length
	taken    bool      // by what follows 101
	raw      io.Reader // what the client says
}

func (w *responder1) buffer() *[]byte {
	if w.out == nil {
		w.out = heads.Get().(*[]byte)
		*w.out = (*w.out)[:0]
	}
	return w.out
}

func (w *responder1) free() {
	if w.out != nil {
		heads.Put(w.out)
		w.out = nil
	}
}

// Inform is responder's.
func (w *responder1) Inform(status int, fields []http1.Field) error {
	if !w.chunks {
		return nil // HTTP/1.0 knows nothing of it
	}
	b := w.buffer()
	*b = http1.AppendStatusLine(*b, status)
	for _, f := range fields {
		*b = http1.AppendField(*b, f.Name, f.Value)
	}
	*b = append(*b, "\r\n"...)
	return w.Flush()
}

// Head is responder's.
func (w *responder1) Head(status int, fields []http1.Field, length int64) error {
	b := w.buffer()
	*b = http1.AppendStatusLine(*b, status)
	for i := range fields {
		*b = http1.AppendField(*b, fields[i].Name, fields[i].Value)
	}
	w.left = 0
	if w.draining.Err() != nil {
		w.keep = false
	}
	switch {
	case status < 200:
		w.response = http1.None
		*b = append(*b, "\r\n"...)
		return nil
	case status == 204 || status == 304:
		w.response = http1.None
	case w.head:
		w.response = http1.None
		if length > 0 {
			*b = http1.AppendFraming(*b, http1.Length, length)
		}
	case length >= 0:
		w.response, w.left = http1.Length, length
	case w.chunks:
		w.response = http1.Chunked
	default:
		w.response, w.keep = http1.UntilEnd, false
	}
	*b = http1.AppendFraming(*b, w.response, length)
	if !w.keep {
		*b = append(*b, "connection: close\r\n"...)
	}
	*b = append(*b, "\r\n"...)
	return nil
}

const flushAt = 32 << 10

// Write is responder's.
func (w *responder1) Write(p []byte) (int, error) {
	b := w.buffer()
	switch w.response {
	case http1.None:
		return len(p), nil
	case http1.Chunked:
		*b = http1.AppendChunk(*b, p)
	case http1.Length:
		if w.left -= int64(len(p)); w.left < 0 {
			return 0, fmt.Errorf("the response is longer than it says: %w", http1.ErrMalformed)
		}
		*b = append(*b, p...)
	default:
		*b = append(*b, p...)
	}
	if len(*b) >= flushAt {
		return len(p), w.Flush()
	}
	return len(p), nil
}

// Flush is responder's.
func (w *responder1) Flush() error {
	b := w.buffer()
	if len(*b) == 0 {
		return nil
	}
	_, err := w.conn.Write(*b)
	*b = (*b)[:0]
	return err
}

// End is responder's.
func (w *responder1) End(trailers []http1.Field) error {
	b := w.buffer()
	switch {
	case w.response == http1.Chunked:
		*b = http1.AppendLastChunk(*b, trailers)
	case w.response == http1.Length && w.left > 0:
		w.Abort()
		return io.ErrUnexpectedEOF
	}
	return w.Flush()
}

// Abort is responder's.
func (w *responder1) Abort() {
	w.keep = false
	if r, ok := w.conn.(interface{ Reset() error }); ok {
		r.Reset()
		return
	}
	w.conn.Close()
}

func (w *responder1) switched() (net.Conn, io.Reader) {
	w.taken = true
	w.Flush()
	return w.conn, w.raw
}
