package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// serveTCP carries a connection whose contents are nobody's business, but for the name
// that a client of TLS asks for, where routes go by that. Either client is set, or in,
// which is then answered once the endpoint has accepted.
func (s *Server) serveTCP(ctx context.Context, session *Session, to *target.Target, client *peeked, in *hbone.Incoming, refuse func(error)) {
	routes, name := to.RoutesFor(session.Client.Identity.Namespace), ""
	if byName(routes) {
		if client == nil {
			stream, err := in.Accept()
			if err != nil {
				s.cfg.Conns.Fail(session.Attempt, conns.TunnelLost, err)
				return
			}
			stop := context.AfterFunc(ctx, func() { stream.Reset() })
			defer stop()
			client = &peeked{Stream: stream}
			refuse = s.resetting(session, stream)
		}
		var err error
		if name, err = client.serverName(); err != nil {
			refuse(conns.Fail(RouteUnmatched, fmt.Errorf("the service has routes for TLS: %w", err)))
			return
		}
	}
	service, port, own, err := routed(s.cfg.Snapshot(), to, routes, name, rand.Uint64N)
	if err != nil {
		refuse(err)
		return
	}
	endpoint := to.Endpoint
	if !own {
		endpoint = nil // another service's: any of its endpoints
	}
	server, err := s.cfg.Upstream.Open(ctx, upstream.Want{
		Snapshot: s.cfg.Snapshot(), Service: service, Port: port, Endpoint: endpoint, Client: session.Client.Addr,
		Admit: func(w *workload.Workload, at netip.AddrPort) error {
			return s.cfg.Policies.Connection(s.cfg.Snapshot(), to, session.Client, w, at)
		},
	})
	if err != nil {
		refuse(err)
		return
	}
	defer server.Reset() // no more than Close, if it is over
	if client == nil {
		stream, err := in.Accept()
		if err != nil {
			s.cfg.Conns.Fail(session.Attempt, conns.TunnelLost, err)
			return
		}
		client = &peeked{Stream: stream}
	}
	session.Attempt.Destination.Workload, session.Attempt.Destination.Identity = server.Workload, server.Workload.Identity
	session.judge = func(now *workload.Snapshot) error {
		resolved, err := target.Resolve(now, s.cfg.Self(), session.Destination)
		if err != nil {
			return err
		}
		return s.cfg.Policies.Connection(now, resolved, session.Client, server.Workload, server.Target)
	}
	record := s.cfg.Conns.Open(ctx, session.Attempt)
	server.OnDistrust(func(err error) { record.Cut(conns.ReasonOf(err), err) })
	forget := s.register(session)
	defer forget()
	reason, err := carry(record.Context(), client, server, record)
	if failure, ok := errors.AsType[*conns.Failure](context.Cause(record.Context())); ok && reason != conns.Closed {
		reason, err = failure.Reason, failure.Err
	}
	record.End(reason, err)
}

// resetting refuses a connection that the client was granted.
func (s *Server) resetting(session *Session, stream hbone.Stream) func(error) {
	return func(err error) {
		stream.Reset()
		s.cfg.Conns.Fail(session.Attempt, conns.ReasonOf(err), err)
	}
}

const (
	clientReset conns.Reason = "ClientReset"
	serverReset conns.Reason = "ServerReset"
)

// carry moves bytes both ways until both halves are closed, or either end fails, or
// ctx ends, which resets both.
func carry(ctx context.Context, client, server upstream.Stream, meter *conns.Conn) (conns.Reason, error) {
	var once sync.Once
	reason, cause := conns.Closed, error(nil)
	fail := func(why conns.Reason, err error) {
		once.Do(func() {
			reason, cause = why, err
			reset(client)
			reset(server)
		})
	}
	stop := context.AfterFunc(ctx, func() { fail(conns.Drained, context.Cause(ctx)) })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		blame, err := copyHalf(server, client, serverReset, clientReset, func(n int64) { meter.Moved(n, 0) })
		if err != nil {
			fail(blame, err)
		}
	})
	blame, err := copyHalf(client, server, clientReset, serverReset, func(n int64) { meter.Moved(0, n) })
	if err != nil {
		fail(blame, err)
	}
	both.Wait()
	stop()
	client.Close()
	server.Close()
	once.Do(func() {}) // what comes now comes too late
	return reason, cause
}

// buffers are of what one read of a tunnel's stream gives at most.
var buffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// copyHalf copies until src's half ends, and then ends dst's.
func copyHalf(dst, src upstream.Stream, dstFault, srcFault conns.Reason, moved func(int64)) (conns.Reason, error) {
	buffer := buffers.Get().(*[16 << 10]byte)
	defer buffers.Put(buffer)
	for {
		n, err := src.Read(buffer[:])
		if n > 0 {
			if _, err := dst.Write(buffer[:n]); err != nil {
				return dstFault, err
			}
			moved(int64(n))
		}
		switch {
		case errors.Is(err, io.EOF):
			// That an end is gone which has sent all it had misses nothing.
			if err := dst.CloseWrite(); err != nil {
				return dstFault, err
			}
			return "", nil
		case err != nil:
			return srcFault, err
		}
	}
}

// reset ends a connection so that its peer sees a failure.
func reset(s upstream.Stream) {
	if r, ok := s.(interface{ Reset() error }); ok {
		r.Reset()
		return
	}
	s.Close()
}
