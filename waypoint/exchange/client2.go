package exchange

import (
	"context"
	"io"
	"net"
	"net/http"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// serve2 carries the requests of a connection that speaks HTTP/2.
func (c *client) serve2(conn net.Conn) {
	c.secondVersion = true
	defer conn.Close()
	stop := context.AfterFunc(c.cut, func() { conn.Close() })
	defer stop()
	c.engine.h2.ServeConn(conn, &http2.ServeConnOpts{Context: c.cut, Handler: http.HandlerFunc(c.serveRequest2)})
}

func (c *client) serveRequest2(w http.ResponseWriter, in *http.Request) {
	responder := &responder2{w: w, draining: c.draining}
	r := &Request{Scheme: "http", Version: 2, ctx: in.Context(), length: max(0, in.ContentLength)}
	if in.ContentLength != 0 && in.Body != nil && in.Body != http.NoBody {
		r.body, r.length = in.Body, in.ContentLength
		r.trailers = func() []http1.Field { return request.FieldsOf(in.Trailer) }
		r.stop = func() { in.Body.Close() }
	}
	if err := r.see(request.ReadHTTP2(in)); err != nil {
		r.Method, r.Authority, r.Path, r.Fields = in.Method, in.Host, in.RequestURI, request.FieldsOf(in.Header) // as they came
		x := c.unread(r, responder)
		x.answer(http.StatusBadRequest, flagMalformed, err.Error(), nil)
		c.engine.cfg.Telemetry.record(x)
		return
	}
	c.handle(r, responder)
}

// responder2 answers by HTTP/2.
type responder2 struct {
	w http.ResponseWriter
	// draining: the client is told to go on elsewhere.
	draining context.Context
	headed   bool
}

// Inform is responder's.
func (r *responder2) Inform(status int, fields []http1.Field) error {
	if status == http.StatusContinue {
		return nil // said when the body was first read
	}
	header := r.w.Header()
	for _, f := range fields {
		header[http.CanonicalHeaderKey(f.Name)] = append(header[http.CanonicalHeaderKey(f.Name)], f.Value)
	}
	r.w.WriteHeader(status)
	clear(header)
	return nil
}

// Head is responder's.
func (r *responder2) Head(status int, fields []http1.Field, length int64) error {
	header := r.w.Header()
	for _, f := range fields {
		name := http.CanonicalHeaderKey(f.Name)
		header[name] = append(header[name], f.Value)
	}
	if length > 0 {
		header.Set("Content-Length", itoa(length))
	}
	for _, name := range []string{"Date", "Content-Type"} {
		if _, ok := header[name]; !ok {
			header[name] = nil // none of the library's own
		}
	}
	if r.draining.Err() != nil {
		header.Set("Connection", "close") // the library says GOAWAY, and does not send it
	}
	r.headed = true
	r.w.WriteHeader(status)
	return nil
}

func (r *responder2) Write(p []byte) (int, error) { return r.w.Write(p) }

// Flush is responder's.
func (r *responder2) Flush() error { return http.NewResponseController(r.w).Flush() }

// End is responder's.
func (r *responder2) End(trailers []http1.Field) error {
	header := r.w.Header()
	for _, f := range trailers {
		name := http.TrailerPrefix + http.CanonicalHeaderKey(f.Name)
		header[name] = append(header[name], f.Value)
	}
	return nil
}

// Abort is responder's: the library resets the stream of a handler that panics so.
func (r *responder2) Abort() { panic(http.ErrAbortHandler) }

var _ io.Writer = (*responder2)(nil)
