package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/token"
)

// Request is one, without what is the connection's alone.
type Request struct {
	// Seen is the request as it came, in the form that is decided on.
	Seen request.Request
	// What goes on: as it was seen, until a route changes it.
	Method, Scheme, Authority string
	// Path with its query, as it goes on.
	Path   string
	Fields []http1.Field
	// Proof is what the request's token proved; nil for none.
	Proof *token.Proof
	// approvals of providers.
	approvals *approvals
	// Upgrade is the protocol that the client wants to switch to; empty for none.
	Upgrade string
	// Version of HTTP that the client speaks: 1 or 2.
	Version int

	// body, its length or -1, and what is said after it; nil for none.
	body     io.Reader
	length   int64
	trailers func() []http1.Field
	// inline: the body can be read at once. stop ends a Read that waits; nothing can
	// be read afterwards.
	inline bool
	stop   func()
	// ctx ends with the request; nil if it does with the connection.
	ctx context.Context
	// kept is what of the body was read, as long as it may have to be read again;
	// lost: it cannot be any more.
	kept []byte
	at   int
	lost bool

	// proceed tells a client that waits for it to send the body; nil for nobody waits.
	proceed func() error

	received int64
}

// see takes the canonical form of the request. From there on everything else is made from
// it.
func (r *Request) see(seen request.Request, err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", http1.ErrMalformed, err)
	}
	r.Seen = seen
	r.Method, r.Authority, r.Path, r.Fields = seen.Method, seen.Authority(), seen.Target(), seen.Fields
	return nil
}

// Change puts others in place of the fields and the query, for everybody. Of what comes
// after the body, fields that are forged are left out.
func (r *Request) Change(fields []http1.Field, query string, forged func(name string) bool) {
	r.Seen.Fields, r.Seen.Query = fields, query
	r.Fields, r.Path = fields, r.Seen.Target()
	if after := r.trailers; after != nil {
		r.trailers = func() []http1.Field {
			return slices.DeleteFunc(slices.Clone(after()), func(f http1.Field) bool { return forged(f.Name) })
		}
	}
}

// Length of the body; -1 if nobody knows.
func (r *Request) Length() int64 { return r.length }

// Field is the first value of a field; its name is in lower case.
func (r *Request) Field(name string) (string, bool) {
	for i := range r.Fields {
		if r.Fields[i].Name == name {
			return r.Fields[i].Value, true
		}
	}
	return "", false
}

// rewind has the body sent from its beginning once more, if that can be.
func (r *Request) rewind() bool {
	if r.body == nil {
		return true
	}
	if r.lost {
		return false
	}
	r.at = 0
	return true
}

// Read gives the body, and keeps it while it is small.
func (r *Request) Read(p []byte) (int, error) {
	if r.at < len(r.kept) {
		n := copy(p, r.kept[r.at:])
		r.at += n
		return n, nil
	}
	n, err := r.body.Read(p)
	r.received += int64(n)
	if n > 0 && !r.lost {
		if len(r.kept)+n > replayable {
			r.lost, r.kept, r.at = true, nil, 0
		} else {
			r.kept = append(r.kept, p[:n]...)
			r.at = len(r.kept)
		}
	}
	return n, err
}

// ReadAhead returns the beginning of the body, n bytes at most, and whether that is all
// of it. Whoever reads the body afterwards gets it from its beginning. When ctx ends
// before, nothing of it can be read any more.
func (r *Request) ReadAhead(ctx context.Context, n int) (begin []byte, whole bool, err error) {
	if r.body == nil {
		return nil, true, nil
	}
	if r.proceed != nil {
		if err := r.proceed(); err != nil {
			return nil, false, err
		}
		r.proceed = nil
	}
	source := r.body
	stop := context.AfterFunc(ctx, r.stop)
	// One byte more says whether there is more.
	begin, err = io.ReadAll(io.LimitReader(source, int64(n)+1))
	if !stop() && err == nil && len(begin) <= n {
		err = context.Cause(ctx) // the end that was read may be the end of waiting
	}
	if err != nil {
		return nil, false, err
	}
	r.body = io.MultiReader(bytes.NewReader(begin), source)
	return begin[:min(n, len(begin))], len(begin) <= n, nil
}

// response of an endpoint.
type response struct {
	status   int
	fields   []http1.Field
	length   int64     // -1 if it is not known
	body     io.Reader // nil for none
	trailers func() []http1.Field
	// ready tells whether more of the body can be read at once.
	ready func() bool
	// switched carries what follows 101.
	switched func(*exchange)
	// complete: it was read to its end.
	complete bool
	onClose  []func()
}

// close gives back what the response holds.
func (r *response) close() {
	for _, f := range r.onClose {
		f()
	}
	r.onClose = nil
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) }

func isGRPC(r *Request) bool {
	value, _ := r.Field("content-type")
	return value == "application/grpc" || strings.HasPrefix(value, "application/grpc+") || strings.HasPrefix(value, "application/grpc;")
}
