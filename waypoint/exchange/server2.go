package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// server2 is a connection to an endpoint that speaks HTTP/2.
type server2 struct {
	conn *upstream.Conn
	h2   *http2.ClientConn
	stop func() bool
}

func (s *server2) close() {
	s.stop()
	s.h2.Close()
	s.conn.Close()
}

var transport2 = &http2.Transport{AllowHTTP: true, DisableCompression: true}

// connection2 returns a connection that takes one more request. opened: it is new.
func (x *exchange) connection2(ctx context.Context, want upstream.Want) (s *server2, opened bool, err error) {
	c := x.client
	want.Reuse = func(w *workload.Workload, at netip.AddrPort) bool {
		c.mu.Lock()
		known := c.multiplexed[at]
		ok := known != nil && known.conn.Workload.UID == w.UID && known.conn.Workload.Identity == w.Identity && known.h2.CanTakeNewRequest()
		c.mu.Unlock()
		if ok {
			s = known
		}
		return ok
	}
	conn, err := c.engine.cfg.Upstream.Open(ctx, want)
	if err != nil || conn == nil {
		return s, false, err
	}
	h2, err := transport2.NewClientConn(conn)
	if err != nil {
		conn.Reset()
		return nil, false, conns.Fail(upstreamProtocol, fmt.Errorf("begin HTTP/2: %w", err))
	}
	s = &server2{conn: conn, h2: h2, stop: context.AfterFunc(c.cut, func() { conn.Reset() })}
	c.mu.Lock()
	before, closed := c.multiplexed[conn.Target], c.closed
	if !closed {
		c.multiplexed[conn.Target] = s
	}
	c.mu.Unlock()
	if closed {
		s.close()
		return nil, false, conns.Fail(clientGone, errors.New("the client's connection is over"))
	}
	if before != nil {
		go func() {
			before.h2.Shutdown(c.cut)
			before.close()
		}()
	}
	return s, true, nil
}

// send2 makes one attempt by HTTP/2.
func (x *exchange) send2(ctx context.Context, want upstream.Want) (*response, error) {
	s, opened, err := x.connection2(ctx, want)
	if err != nil {
		return nil, err
	}
	if _, waits := x.request.Field("expect"); waits && x.request.body != nil {
		// The endpoint would say so once it reads; the library has no word for it.
		if err := x.responder.Inform(http.StatusContinue, nil); err != nil {
			return nil, conns.Fail(clientGone, err)
		}
	}
	ctx, end := context.WithCancel(ctx)
	forget := x.follow(end)
	done := s.conn.Asked()
	cancel := func() {
		done()
		forget()
		end()
	}
	answer, err := s.h2.RoundTrip(x.request.http(ctx, &x.outgoing))
	if err != nil {
		defer cancel()
		err = s.explain(ctx, err, opened)
		x.judge(s.conn, want, err)
		return nil, err
	}
	s.conn.Answered()
	r := &response{
		status: answer.StatusCode, fields: http1.EndToEnd(request.FieldsOf(answer.Header)), length: answer.ContentLength, body: answer.Body,
		ready:    never,
		trailers: func() []http1.Field { return request.FieldsOf(answer.Trailer) },
	}
	r.onClose = append(r.onClose, func() {
		answer.Body.Close()
		cancel()
	})
	return r, nil
}

// explain says why no response came. Its error is always a *conns.Failure.
func (s *server2) explain(ctx context.Context, err error, opened bool) error {
	if failure, ok := errors.AsType[*conns.Failure](context.Cause(ctx)); ok {
		return failure
	}
	if ctx.Err() != nil {
		return conns.Fail(clientGone, context.Cause(ctx))
	}
	if errors.Is(err, errClient) {
		return conns.Fail(clientGone, err)
	}
	if untouched(err) {
		err = errors.Join(errUntouched, err)
	}
	if !opened && !s.h2.CanTakeNewRequest() {
		err = errors.Join(errStale, err)
	}
	return conns.Fail(upstreamGone, fmt.Errorf("ask by HTTP/2: %w", err))
}

// untouched tells whether the endpoint has said that it has not acted on a request (RFC 9113
// sections 6.8 and 8.7), or it was not sent. The library has no names for all of that.
func untouched(err error) bool {
	if reset, ok := errors.AsType[http2.StreamError](err); ok {
		return reset.Code == http2.ErrCodeRefusedStream
	}
	return strings.Contains(err.Error(), "graceful shutdown GOAWAY") || strings.Contains(err.Error(), "client conn not usable")
}

// http is the request as the library wants it.
func (r *Request) http(ctx context.Context, o *Outgoing) *http.Request {
	path, query, asks := strings.Cut(o.Path, "?")
	out := &http.Request{
		Method: r.Method, URL: &url.URL{Scheme: "http", Host: o.Authority, Opaque: path, RawQuery: query, ForceQuery: asks}, Host: o.Authority,
		Header: make(http.Header, len(o.Fields)), ContentLength: max(0, r.length),
	}
	for _, f := range o.Fields {
		name := http.CanonicalHeaderKey(f.Name)
		out.Header[name] = append(out.Header[name], f.Value)
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // none of the library's own
	}
	delete(out.Header, "Expect")
	if r.body != nil {
		out.Body = &requestBody{request: r}
		out.ContentLength = r.length
	}
	return out.WithContext(ctx)
}

// requestBody is one attempt's reader of a body.
type requestBody struct {
	request *Request
	once    sync.Once
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.request.Read(p)
	if err != nil && !isEnd(err) {
		err = fmt.Errorf("%w: %w", errClient, err)
	} else if err != nil {
		err = io.EOF
	}
	return n, err
}

func (b *requestBody) Close() error { return nil }
