package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// server1 is a connection to an endpoint that speaks HTTP/1.1.
type server1 struct {
	conn   *upstream.Conn
	reader *http1.Reader
	stop   func() bool // of what cuts it with the client's connection
	used   bool        // a response came on it
}

// errStale says that a connection was over that was kept, and nothing came on it.
var errStale = errors.New("the endpoint had closed the connection")

func (s *server1) close() {
	s.stop()
	s.conn.Close()
	s.reader.Free()
}

// keptPerEndpoint is how many connections without a request are kept.
const keptPerEndpoint = 8

// keep has a connection used by a later request.
func (c *client) keep(s *server1) {
	s.used = true
	c.mu.Lock()
	ok := !c.closed && len(c.idle[s.conn.Target]) < keptPerEndpoint
	if ok {
		c.idle[s.conn.Target] = append(c.idle[s.conn.Target], s)
	}
	c.mu.Unlock()
	if !ok {
		s.close()
	}
}

// take finds a connection that was kept.
func (c *client) take(w *workload.Workload, at netip.AddrPort) *server1 {
	for {
		c.mu.Lock()
		list := c.idle[at]
		if len(list) == 0 {
			c.mu.Unlock()
			return nil
		}
		s := list[len(list)-1]
		c.idle[at] = list[:len(list)-1]
		c.mu.Unlock()
		if s.conn.Workload.UID == w.UID && s.conn.Workload.Identity == w.Identity && s.alive() {
			return s
		}
		s.close()
	}
}

// alive tells whether an idle connection is: nothing may have come on it.
func (s *server1) alive() bool { return s.reader.Buffered() == 0 && s.conn.Quiet() }

// send1 makes one attempt by HTTP/1.1.
func (x *exchange) send1(ctx context.Context, want upstream.Want) (*response, error) {
	c := x.client
	var s *server1
	want.Reuse = func(w *workload.Workload, at netip.AddrPort) bool {
		s = c.take(w, at)
		return s != nil
	}
	conn, err := c.engine.cfg.Upstream.Open(ctx, want)
	if err != nil {
		return nil, err
	}
	if conn != nil {
		s = &server1{conn: conn, reader: http1.NewReader(conn), stop: context.AfterFunc(c.cut, func() { conn.Reset() })}
	}
	response, err := s.roundTrip(ctx, x)
	if err != nil {
		x.judge(s.conn, want, err)
		s.close()
		return nil, err
	}
	s.conn.Answered()
	return response, nil
}

var heads = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// roundTrip sends the request and reads the head of its response.
func (s *server1) roundTrip(ctx context.Context, x *exchange) (*response, error) {
	done := s.conn.Asked()
	stop := func() bool { return true }
	if ctx != x.client.cut {
		stop = context.AfterFunc(ctx, func() { s.conn.Reset() })
	}
	forget := x.follow(func() { s.conn.Reset() })
	ended := stop
	stop = func() bool {
		done()
		forget()
		return ended()
	}
	r := x.request
	pooled := heads.Get().(*[]byte)
	parts := r.head(&x.outgoing)
	head := parts.Append((*pooled)[:0])
	inline := r.body != nil && (r.inline || r.at < len(r.kept) && int64(len(r.kept)) == r.length)
	var err error
	if inline {
		if head, err = appendBody(head, r); err != nil {
			stop()
			return nil, conns.Fail(clientGone, fmt.Errorf("read the request: %w", err))
		}
	}
	_, writeErr := s.conn.Write(head)
	*pooled = head[:0]
	heads.Put(pooled)
	var sending chan error
	if r.body != nil && !inline && writeErr == nil {
		sending = make(chan error, 1)
		go func() { sending <- s.sendBody(r) }()
	}
	response, err := s.readHead(x)
	if err == nil {
		response.onClose = append(response.onClose, func() { s.over(x, response, stop, sending) })
		return response, nil
	}
	stop()
	if sending != nil {
		s.conn.Reset()
		r.stop()
		if sent := <-sending; errors.Is(sent, errClient) {
			return nil, conns.Fail(clientGone, sent)
		}
		r.lost = true
	}
	if ctx.Err() != nil {
		if failure, ok := errors.AsType[*conns.Failure](context.Cause(ctx)); ok {
			return nil, failure
		}
		return nil, conns.Fail(clientGone, context.Cause(ctx))
	}
	return nil, s.explain(errors.Join(err, writeErr))
}

// explain says why no response came.
func (s *server1) explain(err error) error {
	switch {
	case errors.Is(err, http1.ErrMalformed), errors.Is(err, http1.ErrTooLong):
		return conns.Fail(upstreamProtocol, fmt.Errorf("read the response: %w", err))
	case s.used && s.reader.Buffered() == 0:
		return conns.Fail(upstreamGone, errors.Join(errStale, err))
	}
	return conns.Fail(upstreamGone, fmt.Errorf("read the response: %w", err))
}

// lateFor is how long the rest of a request may take once its response is over: what
// is all but sent is, and what the endpoint does not read never would be.
const lateFor = 50 * time.Millisecond

// over gives the connection back once the response was read, or ends it.
func (s *server1) over(x *exchange, response *response, stop func() bool, sending chan error) {
	cut := !stop()
	if sending != nil {
		select {
		case err := <-sending:
			cut = cut || err != nil
		case <-time.After(lateFor):
			// The endpoint has answered without having read it all: nobody wants the rest.
			cut = true
			s.conn.Reset()
			x.request.stop()
			<-sending
		}
	}
	if cut || !response.complete || response.switched != nil {
		s.close()
		return
	}
	x.client.keep(s)
}

// errClient: the request's body ended before its end.
var errClient = errors.New("the client did not send the whole request")

// sendBody sends what is not sent with the head.
func (s *server1) sendBody(r *Request) error {
	buffer := bodies.Get().(*[bodyBuffer]byte)
	defer bodies.Put(buffer)
	pooled := heads.Get().(*[]byte)
	defer heads.Put(pooled)
	for {
		n, err := r.Read(buffer[:])
		if n > 0 {
			out := buffer[:n]
			if r.length < 0 {
				out = http1.AppendChunk((*pooled)[:0], out)
				*pooled = out[:0]
			}
			if _, err := s.conn.Write(out); err != nil {
				return err
			}
		}
		switch {
		case isEnd(err) && r.length < 0:
			var trailers []http1.Field
			if r.trailers != nil {
				trailers = r.trailers()
			}
			_, err := s.conn.Write(http1.AppendLastChunk(nil, trailers))
			return err
		case isEnd(err):
			return nil
		case err != nil:
			s.conn.Reset() // it must not look complete
			return fmt.Errorf("%w: %w", errClient, err)
		}
	}
}

// appendBody adds a whole body whose length is known.
func appendBody(b []byte, r *Request) ([]byte, error) {
	begin := len(b)
	for int64(len(b)-begin) < r.length {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):min(cap(b), begin+int(r.length))])
		b = b[:len(b)+n]
		if err != nil && int64(len(b)-begin) < r.length {
			if isEnd(err) {
				err = io.ErrUnexpectedEOF
			}
			return b, err
		}
	}
	return b, nil
}

// head is that of the request as it goes on.
func (r *Request) head(o *Outgoing) http1.Request {
	out := http1.Request{Method: r.Method, Target: o.Path, Host: o.Authority, Fields: o.Fields, Upgrade: r.Upgrade}
	switch {
	case r.body != nil && r.length >= 0:
		out.Framing, out.Length = http1.Length, r.length
	case r.body != nil:
		out.Framing = http1.Chunked
	case r.length == 0 && (r.Method == "POST" || r.Method == "PUT" || r.Method == "PATCH"):
		out.Framing = http1.Length
	}
	return out
}

// readHead reads the head of the response, and those before it that inform.
func (s *server1) readHead(x *exchange) (*response, error) {
	for {
		head, err := s.reader.Head()
		if err != nil {
			return nil, err
		}
		parsed, err := http1.ParseResponse(head, x.request.Method)
		if err != nil {
			return nil, err
		}
		switch {
		case parsed.Status == 101 && x.request.Upgrade == "":
			return nil, fmt.Errorf("101 that nobody asked for: %w", http1.ErrMalformed)
		case parsed.Status == 101:
			return s.switching(parsed), nil
		case parsed.Status < 200:
			if err := x.responder.Inform(parsed.Status, http1.EndToEnd(parsed.Fields)); err != nil {
				return nil, err
			}
			continue
		}
		return s.response(parsed), nil
	}
}

func (s *server1) response(parsed *http1.Response) *response {
	r := &response{status: parsed.Status, fields: http1.EndToEnd(parsed.Fields), length: parsed.Length, ready: never, trailers: noTrailers}
	if parsed.Close {
		r.onClose = append(r.onClose, func() { r.complete = false })
	}
	if parsed.Framing == http1.None {
		// Of HEAD and 304, the length is that of another response.
		if r.length < 0 {
			r.length = 0
		}
		return r
	}
	if parsed.Framing != http1.Length {
		r.length = -1
	}
	body := http1.NewBody(s.reader, parsed.Framing, parsed.Length)
	r.body, r.ready = body, body.Ready
	r.trailers = func() []http1.Field { return body.Trailers }
	return r
}

func noTrailers() []http1.Field { return nil }

func never() bool { return false }
