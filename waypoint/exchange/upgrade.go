package exchange

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// switching is the response after which both sides speak something else.
func (s *server1) switching(parsed *http1.Response) *response {
	r := &response{status: parsed.Status, length: 0, ready: never, trailers: noTrailers}
	var upgrade string
	for _, f := range parsed.Fields {
		if f.Name == "upgrade" {
			upgrade = f.Value
		}
	}
	r.fields = append(http1.EndToEnd(parsed.Fields), http1.Field{Name: "connection", Value: "upgrade"}, http1.Field{Name: "upgrade", Value: upgrade})
	r.switched = func(x *exchange) {
		raw, ok := x.responder.(interface{ switched() (net.Conn, io.Reader) })
		if !ok {
			x.flag, x.detail = flagProtocol, "the client's version of HTTP has no upgrades"
			return
		}
		client, from := raw.switched()
		x.carry(client, from, s.conn, s.reader)
	}
	return r
}

type halfCloser interface{ CloseWrite() error }

// carry moves bytes both ways until both halves are closed, or either end fails.
func (x *exchange) carry(client net.Conn, fromClient io.Reader, server net.Conn, fromServer io.Reader) {
	var failed atomic.Bool
	fail := func() {
		failed.Store(true)
		for _, c := range []net.Conn{client, server} {
			if r, ok := c.(interface{ Reset() error }); ok {
				r.Reset()
			} else {
				c.Close()
			}
		}
	}
	stop := context.AfterFunc(x.client.cut, fail)
	defer stop()
	var both sync.WaitGroup
	half := func(dst net.Conn, src io.Reader, moved *int64) {
		buffer := bodies.Get().(*[bodyBuffer]byte)
		defer bodies.Put(buffer)
		for {
			n, err := src.Read(buffer[:])
			if n > 0 {
				if _, err := dst.Write(buffer[:n]); err != nil {
					fail()
					return
				}
				*moved += int64(n)
			}
			if errors.Is(err, io.EOF) {
				if c, ok := dst.(halfCloser); ok {
					c.CloseWrite()
				}
				return
			}
			if err != nil {
				fail()
				return
			}
		}
	}
	both.Go(func() { half(server, fromClient, &x.request.received) })
	half(client, fromServer, &x.sent)
	both.Wait()
	switch revoked := x.revocation(); {
	case revoked != nil:
		_, x.flag = verdictOf(revoked.Reason)
		x.detail = revoked.Error()
	case failed.Load():
		x.flag, x.detail = flagUpstreamGone, "an end failed after protocols were switched"
	}
}
