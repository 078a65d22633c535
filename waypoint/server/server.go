// Package server ends the tunnels of clients, and sees to what they ask for.
//
//	server.go   accept tunnels; a request for a connection -> what it is for -> serve
//	sniff.go    HTTP/1.1, HTTP/2 or neither, where the port does not say
//	route.go    where connections without requests go
//	tcp.go      neither: policy -> endpoint -> both ways, until both halves close
//	follow.go   connections that live are judged again when what they rest on changes
//
// The client of a tunnel is its peer: the identity that it proved, and the address that
// its TCP connection comes from. What a request says of either is not heard.
//
// Invariants: nothing is served without a binding, nor as long as a policy that the
// binding names has not come; a connection is followed from before its first byte, and
// cut once its binding is gone or policy admits it no longer; what is not HTTP never
// passes where routes for HTTP are attached; when Run returns, so has every goroutine
// it started.
//
// What an address stands for is target's to find, HTTP exchange's job, choosing and connecting endpoints upstream's.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/listen"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// ledWithin is how long a waypoint may hear later than a client's node that clients are
// led to it. Who comes when they are not any more is to leave in order too, which may
// take as long again before the waypoint is not known any more.
const ledWithin = 2 * time.Second

// Policies decides by RequestPolicies.
type Policies interface {
	// Connection judges one without requests, for what is bound and, once it is
	// chosen, for its endpoint. Its error is always a *conns.Failure.
	Connection(s *workload.Snapshot, t *target.Target, c target.Client, endpoint *workload.Workload, at netip.AddrPort) error
}

// HTTP serves connections that carry requests.
type HTTP interface {
	// Serve returns when the connection is over, which it closes. Once draining ends,
	// the client is told to come again elsewhere; when cut does, it is over.
	Serve(draining, cut context.Context, conn net.Conn, s *Session, http2 bool)
}

// Opener opens connections to endpoints.
type Opener interface {
	Open(ctx context.Context, want upstream.Want) (*upstream.Conn, error)
}

// Config of a Server. All fields are required but Metrics and SniffTimeout.
type Config struct {
	Listener *net.TCPListener
	// TLS is what tunnels are accepted with, by GetCertificate.
	TLS      *tls.Config
	Trust    accept.Trust
	Quotas   *accept.Quotas
	Snapshot func() *workload.Snapshot
	// Self is the waypoint's own pod.
	Self     func() *workload.Workload
	Policies Policies
	Upstream Opener
	HTTP     HTTP
	Conns    *conns.Registry
	Logger   *slog.Logger
	// DrainTimeout is how long connections may live on after Run's context ended.
	DrainTimeout time.Duration
	// Metrics is the port at which the waypoint's pod tells of itself to whoever asks, and
	// so to clients of the mesh: of its own ports they reach no other. 0 for none.
	Metrics uint16
	// SniffTimeout is how long a client may be silent on a port that does not say
	// what it speaks, until it is taken for one that waits for its server; the usual
	// if zero.
	SniffTimeout time.Duration
}

// Server is the waypoint's door.
type Server struct {
	cfg     Config
	tunnels *accept.Server
	listen  *listen.Server

	mu sync.Mutex
	// Guarded by mu.
	live map[*Session]struct{}
}

// New makes a Server; Run is to be called once.
func New(cfg Config) *Server {
	if cfg.SniffTimeout == 0 {
		cfg.SniffTimeout = sniffTimeout
	}
	return &Server{
		cfg: cfg, listen: listen.New(cfg.Listener, listen.Limit, cfg.Logger), live: map[*Session]struct{}{},
		tunnels: accept.New(accept.Config{
			TLS: cfg.TLS, Trust: cfg.Trust, Quotas: cfg.Quotas, Target: cfg.Self, Conns: cfg.Conns, Logger: cfg.Logger, DrainTimeout: cfg.DrainTimeout,
		}),
	}
}

// Run serves until ctx ends, and then what lives, for DrainTimeout at most. An error
// means that accepting had to stop.
func (s *Server) Run(ctx context.Context) error {
	var judging sync.WaitGroup
	judge, over := context.WithCancel(context.WithoutCancel(ctx))
	judging.Go(func() { s.tunnels.Judge(judge) })
	judging.Go(func() { s.follow(judge) })
	err := s.listen.Run(ctx, s.cfg.DrainTimeout, func(draining, cut context.Context, raw *net.TCPConn, done func()) {
		defer done()
		s.tunnels.Serve(draining, cut, raw, func(alive, cut context.Context, t accept.Tunnel, in *hbone.Incoming) {
			s.serve(draining, alive, cut, t, in)
		})
	})
	over()
	judging.Wait()
	return err
}

// Cut ends everything now.
func (s *Server) Cut() { s.listen.Cut() }

// Session is one connection that a client was granted.
type Session struct {
	Client target.Client
	// Destination as the client asked for it.
	Destination netip.AddrPort
	// Attempt describes it, for records.
	Attempt conns.Attempt

	// Fixed once it lives.
	judge func(*workload.Snapshot) error
	cut   context.CancelCauseFunc
}

// serve sees to one request for a connection.
func (s *Server) serve(draining, alive, cut context.Context, t accept.Tunnel, in *hbone.Incoming) {
	attempt := conns.Attempt{
		Direction: conns.Waypoint, Transport: conns.HBONE, Tunnel: t.Local, Started: time.Now(),
		Source: conns.Peer{Addr: t.Remote, Identity: t.Peer},
	}
	snapshot := s.cfg.Snapshot()
	if w, ok := snapshot.WorkloadByAddr(t.Remote.Addr()); ok && w.Identity == t.Peer {
		attempt.Source.Workload = w
	}
	refuse := func(err error) {
		reason := conns.ReasonOf(err)
		in.Refuse(statusOf(reason), conns.Words(reason, err))
		s.cfg.Conns.Fail(attempt, reason, err)
	}
	dst, err := addressOf(in.Authority)
	if err != nil {
		refuse(conns.Fail(conns.BadTarget, err))
		return
	}
	attempt.Destination.Addr = dst
	if err := s.cfg.Quotas.Enter(t.Remote.Addr(), t.Peer); err != nil {
		refuse(err)
		return
	}
	defer s.cfg.Quotas.Leave(t.Remote.Addr(), t.Peer)
	if s.cfg.Metrics != 0 && dst.Port() == s.cfg.Metrics && slices.Contains(s.cfg.Self().Addresses, dst.Addr()) {
		s.serveMetrics(cut, alive, attempt, in, refuse)
		return
	}
	to, err := target.Resolve(snapshot, s.cfg.Self(), dst)
	if err != nil {
		refuse(err)
		return
	}
	attempt.Service = to.Service
	if to.Endpoint != nil {
		attempt.Destination.Workload, attempt.Destination.Identity = to.Endpoint, to.Endpoint.Identity
	}
	ctx, cancel := context.WithCancelCause(cut)
	defer cancel(nil)
	stop := context.AfterFunc(alive, func() { cancel(conns.Fail(conns.TunnelLost, errors.New("the client's tunnel is gone"))) })
	defer stop()
	session := &Session{Client: target.Client{Peer: attempt.Source, Certificate: t.Certificate}, Destination: dst, Attempt: attempt, cut: cancel}
	s.grant(draining, ctx, session, to, in, refuse)
}

// grant lets the client begin, by what the port speaks.
func (s *Server) grant(draining, ctx context.Context, session *Session, to *target.Target, in *hbone.Incoming, refuse func(error)) {
	speaks := speaks(to, session.Client.Identity.Namespace)
	if speaks == plain {
		// The client hears whether there is an endpoint: nothing is to be read first.
		s.serveTCP(ctx, session, to, nil, in, refuse)
		return
	}
	stream, err := in.Accept()
	if err != nil {
		s.cfg.Conns.Fail(session.Attempt, conns.TunnelLost, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { stream.Reset() })
	defer stop()
	conn := &peeked{Stream: stream}
	speaks, err = conn.sniff(speaks, s.cfg.SniffTimeout)
	if err != nil {
		stream.Reset()
		s.cfg.Conns.Fail(session.Attempt, conns.ConnectFailed, fmt.Errorf("nothing came of the client: %w", err))
		return
	}
	if speaks == plain {
		s.serveTCP(ctx, session, to, conn, nil, s.resetting(session, stream))
		return
	}
	// Requests are judged one by one; what they rest on is the binding. Before that goes,
	// clients are not sent here any more, and those who are here are to leave in order.
	draining, leave := context.WithCancel(draining)
	defer leave()
	var led atomic.Bool // its node may know of that before the waypoint does, or after it
	session.judge = func(now *workload.Snapshot) error {
		self := s.cfg.Self()
		to, err := target.Resolve(now, self, session.Destination)
		switch {
		case err != nil:
		case to.Led(self):
			led.Store(true)
		case led.Load():
			leave()
		}
		return err
	}
	late := time.AfterFunc(ledWithin, func() {
		to, err := target.Resolve(s.cfg.Snapshot(), s.cfg.Self(), session.Destination)
		if err == nil && to.Changes() && !led.Load() {
			leave()
		}
	})
	defer late.Stop()
	forget := s.register(session)
	defer forget()
	s.cfg.HTTP.Serve(draining, ctx, conn, session, speaks == http2)
}

// addressOf reads what a client asks for.
func addressOf(authority string) (netip.AddrPort, error) {
	dst, err := netip.ParseAddrPort(authority)
	if err != nil {
		return netip.AddrPort{}, errors.New("the target is not an address and port")
	}
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	if dst.Port() == 0 || dst.Addr().Zone() != "" || dst.Addr().IsLoopback() || dst.Addr().IsUnspecified() || dst.Addr().IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%s is no target", dst)
	}
	return dst, nil
}

// statusOf is the answer to a client whose connection is not granted.
func statusOf(reason conns.Reason) int {
	switch reason {
	case conns.PolicyDenied:
		return http.StatusUnauthorized
	case conns.BadTarget, conns.Loop:
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}
