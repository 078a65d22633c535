// Package exchange carries requests and their responses.
//
//	exchange.go  Engine: one request -> decision -> endpoint -> response, again if it may be
//	outgoing.go  what of a request goes on, as its route changes it
//	message.go   what both versions of HTTP have in common: requests, responses, fields
//	client1.go   a client that speaks HTTP/1.1: one request after the other
//	client2.go   a client that speaks HTTP/2
//	server1.go   an endpoint that speaks HTTP/1.1
//	server2.go   an endpoint that speaks HTTP/2
//	follow.go    requests under way, which are judged again when what they rest on changes
//	approval.go  what providers say of requests
//	budget.go    how many requests of a service may be sent again
//	mirror.go    copies of requests, for whose responses nobody waits
//	upgrade.go   after 101: bytes both ways
//	flags.go     what became of a request, in the field's words
//	telemetry.go one line and the metrics of each request
//	tracing.go   a span of each request, if they are wanted
//
// Connections to endpoints belong to the client's connection that they were opened for,
// since they bear its address; they are kept between its requests.
//
// Invariants: every request is judged by the snapshot of its moment, for what is bound
// and for the endpoint that is chosen, before a byte of it is sent; a request is sent
// again only if nothing of its body is lost, and either the endpoint is known not to have
// acted on it, its method is idempotent, or the route wants it so for what was answered; only 101 switches protocols, and only where the
// client asked for it; a body that was cut short never looks complete to either side;
// each request ends in one line of the log.
package exchange

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// Policies decides by RequestPolicies.
type Policies interface {
	// Authenticate verifies the token of a request that began at a moment, if it bears
	// one, and leaves in it what may be seen and go on. Its error is always a
	// *conns.Failure.
	Authenticate(ctx context.Context, s *workload.Snapshot, t *target.Target, r *Request, began time.Time) error
	// Request judges one for what is bound, with endpoint nil, and for the endpoint
	// that was chosen. Its error is always a *conns.Failure.
	Request(s *workload.Snapshot, t *target.Target, c target.Client, r *Request, endpoint *workload.Workload, at netip.AddrPort) error
	// Ask has the providers asked whose word is all that Request lacks, and approves
	// the request if they agree. Its error is always a *conns.Failure, with a *Refusal
	// in it if a provider has an answer of its own.
	Ask(ctx context.Context, s *workload.Snapshot, t *target.Target, c target.Client, r *Request, endpoint *workload.Workload, at netip.AddrPort) error
}

// Router says where requests go.
type Router interface {
	// Route finds the plan for a request, by the routes attached to what is bound.
	Route(s *workload.Snapshot, t *target.Target, c target.Client, r *Request) Plan
}

// Plan is what becomes of a request.
type Plan struct {
	// Route and Rule by which it was found, for records; empty for none.
	Route, Rule string
	// Answer, if not nil, is all there is to it.
	Answer *Answer
	// Service and Port of the backend; nil for the workload that was addressed.
	Service *workload.Service
	Port    workload.Port
	// Request, if not nil, changes what goes on to the endpoint; the fields are its own.
	Request func(*Outgoing)
	// Response, if not nil, changes the head of the response.
	Response func(status int, fields []http1.Field) []http1.Field
	// Timeout of the whole request, AttemptTimeout of each attempt; 0 for none.
	Timeout, AttemptTimeout time.Duration
	// Retries are further attempts, after the statuses in RetryOn or failures.
	Retries int
	RetryOn []int
	Backoff time.Duration
	// Mirrors get a copy of the request, and nobody waits for their responses.
	Mirrors []Mirror
	// Session, if not nil, is kept at one endpoint.
	Session *Session
}

// Session is what a request belongs to.
type Session struct {
	// Endpoint it is with; nil if it begins now, or the endpoint is gone.
	Endpoint *workload.Workload
	// Begin adds to the response's fields by what the client goes on with the session, at
	// the endpoint that has answered.
	Begin func(w *workload.Workload, fields []http1.Field) []http1.Field
}

// Answer is a response of the waypoint's own.
type Answer struct {
	Status int
	Flag   Flag
	Detail string
	Fields []http1.Field
}

// Mirror is a backend that gets a copy.
type Mirror struct {
	Service *workload.Service
	Port    workload.Port
}

// Config of an Engine. All fields but Tracer are required.
type Config struct {
	Snapshot  func() *workload.Snapshot
	Self      func() *workload.Workload
	Policies  Policies
	Router    Router
	Upstream  server.Opener
	Telemetry *Telemetry
	// Tracer makes a span of each request. Nil: what clients say of traces goes on as it came.
	Tracer trace.Tracer
	Logger *slog.Logger
}

// Engine carries the requests of all connections.
type Engine struct {
	cfg     Config
	h2      *http2.Server
	h2Base  *http.Server // by which h2 is told to end in order
	budgets budgets

	// mirrored has an element for each copy under way.
	mirrored  chan struct{}
	mirroring sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu: the connections of clients.
	clients map[*client]struct{}
}

// New makes an Engine.
func New(cfg Config) (*Engine, error) {
	e := &Engine{cfg: cfg, clients: map[*client]struct{}{}, mirrored: make(chan struct{}, maxMirrored), h2Base: &http.Server{MaxHeaderBytes: http1.MaxHead, ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)}}
	e.h2 = &http2.Server{MaxConcurrentStreams: maxStreams, IdleTimeout: idleTimeout}
	if err := http2.ConfigureServer(e.h2Base, e.h2); err != nil {
		return nil, fmt.Errorf("configure HTTP/2: %w", err)
	}
	return e, nil
}

const (
	// maxStreams is how many requests a client may have under way in one connection.
	maxStreams = 250
	// idleTimeout is how long a connection without a request is kept: longer than
	// the usual clients keep theirs, so that they are who closes.
	idleTimeout = 10 * time.Minute
	// headTimeout is how long a head may take once it has begun.
	headTimeout = 10 * time.Second
	// replayable bodies are kept until it is clear that they need not be sent again.
	replayable = 64 << 10
)

// Serve is server.HTTP's.
func (e *Engine) Serve(draining, cut context.Context, conn net.Conn, s *server.Session, isHTTP2 bool) {
	c := &client{engine: e, session: s, cut: cut, draining: draining, idle: map[netip.AddrPort][]*server1{}, multiplexed: map[netip.AddrPort]*server2{}, running: map[*exchange]struct{}{}}
	e.mu.Lock()
	e.clients[c] = struct{}{}
	e.mu.Unlock()
	defer c.close()
	if isHTTP2 {
		c.serve2(conn)
		return
	}
	c.serve1(conn)
}

// Drain tells clients that speak HTTP/2 to come again elsewhere; the others are told
// with their next response.
func (e *Engine) Drain(ctx context.Context) { e.h2Base.Shutdown(ctx) }

// client is one connection of a client.
type client struct {
	engine        *Engine
	session       *server.Session
	draining, cut context.Context
	secondVersion bool

	// logged is made once, when it is asked for: see log.
	logOnce sync.Once
	logged  *slog.Logger

	mu sync.Mutex
	// Guarded by mu: connections to endpoints that no request uses, and those that
	// many may use.
	idle        map[netip.AddrPort][]*server1
	multiplexed map[netip.AddrPort]*server2
	closed      bool
	// running are the requests that have come to an endpoint.
	running map[*exchange]struct{}
}

// close ends what was opened for the client.
func (c *client) close() {
	c.engine.mu.Lock()
	delete(c.engine.clients, c)
	c.engine.mu.Unlock()
	c.mu.Lock()
	c.closed = true
	idle, multiplexed := c.idle, c.multiplexed
	c.idle, c.multiplexed = nil, nil
	c.mu.Unlock()
	for _, list := range idle {
		for _, s := range list {
			s.close()
		}
	}
	for _, s := range multiplexed {
		s.close()
	}
}

// unread is a request that could not be read: all that is known is for whom it was.
func (c *client) unread(r *Request, w responder) *exchange {
	x := &exchange{client: c, request: r, responder: w, started: time.Now(), snapshot: c.engine.cfg.Snapshot()}
	if to, err := target.Resolve(x.snapshot, c.engine.cfg.Self(), c.session.Destination); err == nil {
		x.target = to
	}
	return x
}

// responder takes a response to where the request came from.
type responder interface {
	// Inform sends a head that is not the last: 100 to 199.
	Inform(status int, fields []http1.Field) error
	// Head begins the response. A length of -1 means that it is not known.
	Head(status int, fields []http1.Field, length int64) error
	Write(p []byte) (int, error)
	Flush() error
	// End ends it in order, Abort so that it does not look complete.
	End(trailers []http1.Field) error
	Abort()
}

// handle carries one request. It tells whether another one may follow it on a
// connection of HTTP/1.1, as far as the endpoint's side is concerned.
func (c *client) handle(r *Request, w responder) (keep bool) {
	e := c.engine
	x := &exchange{client: c, request: r, responder: w, started: time.Now(), snapshot: e.cfg.Snapshot()}
	r.approvals = &x.approvals
	if _, waits := r.Field("expect"); waits && r.body != nil {
		r.proceed = func() error { return x.proceed() }
	}
	x.beginSpan()
	defer func() {
		e.cfg.Telemetry.record(x)
		x.endSpan()
	}()
	x.run()
	return x.ended
}

// proceed has the client send the body that it holds back until it is told to. The
// endpoint is not asked to say so as well.
func (x *exchange) proceed() error {
	x.request.Fields = slices.DeleteFunc(slices.Clone(x.request.Fields), func(f http1.Field) bool { return f.Name == "expect" })
	x.outgoing.Fields = slices.DeleteFunc(slices.Clone(x.outgoing.Fields), func(f http1.Field) bool { return f.Name == "expect" })
	return x.responder.Inform(http.StatusContinue, nil)
}

// exchange is one request and its response.
type exchange struct {
	client    *client
	request   *Request
	responder responder
	started   time.Time
	snapshot  *workload.Snapshot

	approvals approvals

	target   *target.Target
	plan     Plan
	outgoing Outgoing
	// budget of the service that is asked; nil of a copy, which is not sent again.
	budget *budget
	// attempts that were made at endpoints.
	attempts int
	endpoint *workload.Workload
	at       netip.AddrPort
	// status that the client got, and what became of the request.
	status int
	flag   Flag
	detail string
	sent   int64 // of the response's body
	// grpcStatus that the client got; empty if it got none.
	grpcStatus string
	span       trace.Span
	// Guarded by client.mu: see follow.
	cut     func()
	revoked *conns.Failure
	// headed: the head of the response is on its way; ended: it ended in order.
	headed, ended bool
}

func (x *exchange) run() {
	e := x.client.engine
	s := x.client.session
	to, err := target.Resolve(x.snapshot, e.cfg.Self(), s.Destination)
	if err != nil {
		x.refuse(err)
		return
	}
	x.target = to
	ctx := x.client.cut
	if x.request.ctx != nil {
		ctx = x.request.ctx
	}
	if err := e.cfg.Policies.Authenticate(ctx, x.snapshot, to, x.request, x.started); err != nil {
		x.refuse(err)
		return
	}
	if err := x.admit(ctx, nil, netip.AddrPort{}); err != nil {
		x.refuse(err)
		return
	}
	x.plan = e.cfg.Router.Route(x.snapshot, to, s.Client, x.request)
	if a := x.plan.Answer; a != nil {
		x.answer(a.Status, a.Flag, a.Detail, a.Fields)
		return
	}
	if x.plan.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, x.plan.Timeout, errTimeout)
		defer cancel()
	}
	x.depart()
	x.mirror()
	x.budget = e.budgets.begin(x.service())
	defer x.budget.end()
	x.attempt(ctx)
}

var errTimeout = conns.Fail(timedOut, errors.New("the route's timeout has passed"))

// attempt sends the request to one endpoint after the other, until a response may go
// to the client.
func (x *exchange) attempt(ctx context.Context) {
	var avoid []string
	for {
		x.attempts++
		response, err := x.send(ctx, avoid)
		if err == nil && x.retriable(response.status) {
			if x.again(ctx) {
				response.close()
				continue
			}
			if cause := context.Cause(ctx); errors.Is(cause, errTimeout) { // while it waited to ask again
				response.close()
				err = cause
			}
		}
		switch {
		case err == nil:
			x.respond(ctx, response)
			return
		case x.mayRepeat(err) && x.again(ctx):
			if x.endpoint != nil {
				avoid = append(avoid, x.endpoint.UID)
			}
		case errors.Is(err, errStale) && x.harmless(err) && x.revocation() == nil && x.request.rewind() && x.attempts <= maxStale:
		default:
			if revoked := x.revocation(); revoked != nil {
				err = revoked
			}
			if cause := context.Cause(ctx); cause != nil && errors.Is(cause, errTimeout) {
				err = cause
			}
			x.refuse(err)
			return
		}
	}
}

// maxStale bounds how often a connection may turn out to be over that was kept.
const maxStale = 4

// retriable tells whether a status is one after which the route wants another attempt.
func (x *exchange) retriable(status int) bool {
	for _, code := range x.plan.RetryOn {
		if code == status {
			return true
		}
	}
	return false
}

// mayRepeat tells whether an error is of a kind that another attempt may be made after:
// the endpoint was not reached, or it does no harm if it has acted on the request.
func (x *exchange) mayRepeat(err error) bool {
	switch conns.ReasonOf(err) {
	case conns.PolicyDenied, conns.PolicyMissing, NotAsked, ProviderDenied, clientGone, upstream.NoEndpoint:
		return false
	case upstreamGone, upstreamProtocol, timedOut:
		if !x.harmless(err) {
			return false
		}
	}
	return x.plan.Retries > 0 && x.revocation() == nil
}

// harmless tells whether a request may come to endpoints twice: the first has not acted on
// it, or the method is idempotent (RFC 9110 section 9.2.2: a proxy must not repeat others).
func (x *exchange) harmless(err error) bool {
	return errors.Is(err, errUntouched) || x.request.idempotent()
}

// errUntouched says that the endpoint has not acted on the request, and never will.
var errUntouched = errors.New("the endpoint has not acted on it")

func (r *Request) idempotent() bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// again waits for the next attempt, if there may be one.
func (x *exchange) again(ctx context.Context) bool {
	if x.attempts > x.plan.Retries || ctx.Err() != nil || !x.request.rewind() || !x.budget.retry() {
		return false
	}
	if x.plan.Backoff > 0 {
		select {
		case <-time.After(x.plan.Backoff):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// send makes one attempt. Its error is always a *conns.Failure.
func (x *exchange) send(ctx context.Context, avoid []string) (*response, error) {
	if x.plan.AttemptTimeout > 0 {
		timed, cancel := context.WithTimeoutCause(ctx, x.plan.AttemptTimeout, errTimeout)
		response, err := x.sendTo(timed, avoid)
		if err != nil {
			if errors.Is(context.Cause(timed), errTimeout) {
				err = errTimeout
			}
			cancel()
			return nil, err
		}
		response.onClose = append(response.onClose, cancel)
		return response, nil
	}
	return x.sendTo(ctx, avoid)
}

func (x *exchange) sendTo(ctx context.Context, avoid []string) (*response, error) {
	c := x.client
	service, port, endpoint := x.plan.Service, x.plan.Port, x.target.Endpoint
	if service != x.target.Service {
		endpoint = nil // another service's: any of its endpoints
	}
	want := upstream.Want{
		Snapshot: x.snapshot, Service: service, Port: port.Service, Endpoint: endpoint, Client: c.session.Client.Addr, Avoid: avoid, Asks: true,
		Admit: func(w *workload.Workload, at netip.AddrPort) error {
			x.endpoint, x.at = w, at
			return x.admit(ctx, w, at)
		},
	}
	if service == nil {
		want.Port = x.target.EndpointPort()
	}
	if x.plan.Session != nil && endpoint == nil {
		want.Prefer = x.plan.Session.Endpoint
	}
	if x.speaksSecond(port) {
		return x.send2(ctx, want)
	}
	return x.send1(ctx, want)
}

// judge tells how an endpoint did that has not answered: by the reason alone where that is
// its own, and not if the connection had been over before it was asked, or by our doing.
func (x *exchange) judge(conn *upstream.Conn, want upstream.Want, err error) {
	switch reason := conns.ReasonOf(err); {
	case errors.Is(err, errStale), errors.Is(err, errUntouched), x.revocation() != nil:
	case reason == upstreamGone, reason == upstreamProtocol:
		conn.Unanswered(want, reason)
		return
	}
	conn.Undecided()
}

// speaksSecond tells whether the backend is to be spoken to by HTTP/2: as its port
// says, or else as the client does.
func (x *exchange) speaksSecond(port workload.Port) bool {
	switch port.App {
	case "HTTP2", "GRPC":
		return x.request.Upgrade == ""
	case "HTTP11":
		return false
	}
	return x.client.secondVersion
}

// refuse answers a request that does not go on.
func (x *exchange) refuse(err error) {
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		x.answerRefusal(refusal)
		return
	}
	reason := conns.ReasonOf(err)
	status, flag := verdictOf(reason)
	var fields []http1.Field
	if reason == Unauthenticated { // RFC 6750 section 3
		fields = []http1.Field{{Name: "www-authenticate", Value: `Bearer error="invalid_token"`}}
	}
	x.answer(status, flag, string(reason)+": "+err.Error(), fields)
}

// answer is a response of the waypoint's own: a status and hardly a word, since what
// there is to know is the operator's to read.
func (x *exchange) answer(status int, flag Flag, detail string, fields []http1.Field) {
	x.flag, x.detail = flag, detail
	if x.headed {
		x.responder.Abort()
		return
	}
	x.status, x.headed = status, true
	if status == 0 { // there is nobody left to answer
		x.responder.Abort()
		return
	}
	if isGRPC(x.request) && status != http.StatusOK {
		x.answerGRPC(status)
		return
	}
	if x.responder.Head(status, fields, 0) == nil && x.responder.End(nil) == nil {
		x.ended = true
	}
}

// answerGRPC says it so that clients of gRPC understand: trailers alone, with the
// status that the protocol has for what is not its own.
func (x *exchange) answerGRPC(status int) {
	code, ok := grpcCodes[status]
	if !ok {
		code = "2" // UNKNOWN
	}
	fields := []http1.Field{{Name: "content-type", Value: "application/grpc"}, {Name: "grpc-status", Value: code}, {Name: "grpc-message", Value: http.StatusText(status)}}
	x.status, x.grpcStatus = http.StatusOK, code
	if x.responder.Head(http.StatusOK, fields, 0) == nil && x.responder.End(nil) == nil {
		x.ended = true
	}
}

// grpcStatus is one of gRPC's among fields; empty if there is none that it has.
func grpcStatus(fields []http1.Field) string {
	const last = 16 // UNAUTHENTICATED
	for _, f := range fields {
		if n, err := strconv.ParseUint(f.Value, 10, 8); f.Name == "grpc-status" && err == nil && n <= last {
			return strconv.FormatUint(n, 10)
		}
	}
	return ""
}

// service that the request went to, or was for.
func (x *exchange) service() *workload.Service {
	if x.plan.Service == nil && x.target != nil {
		return x.target.Service
	}
	return x.plan.Service
}

// grpcCodes: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
var grpcCodes = map[int]string{400: "13", 401: "16", 403: "7", 404: "12", 429: "14", 502: "14", 503: "14", 504: "14"}

// respond takes the endpoint's response to the client.
func (x *exchange) respond(ctx context.Context, r *response) {
	defer r.close()
	x.status, x.headed = r.status, true
	fields := r.fields
	if x.plan.Response != nil {
		fields = x.plan.Response(r.status, fields)
	}
	for _, a := range x.request.approvedSince(0) {
		if a.Response != nil {
			fields = a.Response(fields)
		}
	}
	if s := x.plan.Session; s != nil && x.endpoint != nil && (s.Endpoint == nil || s.Endpoint.UID != x.endpoint.UID) {
		fields = s.Begin(x.endpoint, fields)
	}
	fail := func(flag Flag, err error) {
		switch revoked := x.revocation(); {
		case revoked != nil:
			_, flag = verdictOf(revoked.Reason)
			err = revoked
		case errors.Is(context.Cause(ctx), errTimeout):
			flag = flagTimeout
		}
		x.flag, x.detail = flag, err.Error()
		x.responder.Abort()
	}
	if err := x.responder.Head(r.status, fields, r.length); err != nil {
		fail(flagClientGone, err)
		return
	}
	if r.switched != nil {
		x.ended = false
		r.switched(x)
		return
	}
	if r.body != nil && !r.ready() {
		if err := x.responder.Flush(); err != nil { // its body may be long in coming
			fail(flagClientGone, err)
			return
		}
	}
	buffer := bodies.Get().(*[bodyBuffer]byte)
	defer bodies.Put(buffer)
	for r.body != nil {
		n, err := r.body.Read(buffer[:])
		if n > 0 {
			if _, err := x.responder.Write(buffer[:n]); err != nil {
				fail(flagClientGone, err)
				return
			}
			x.sent += int64(n)
			if err == nil && !r.ready() {
				if err := x.responder.Flush(); err != nil {
					fail(flagClientGone, err)
					return
				}
			}
		}
		if isEnd(err) {
			break
		}
		if err != nil {
			fail(flagUpstreamGone, fmt.Errorf("the response was cut short: %w", err))
			return
		}
	}
	trailers := r.trailers()
	if isGRPC(x.request) {
		x.grpcStatus = cmp.Or(grpcStatus(trailers), grpcStatus(r.fields))
	}
	if err := x.responder.End(trailers); err != nil {
		fail(flagClientGone, err)
		return
	}
	r.complete = true
	x.ended = true
}

const bodyBuffer = 16 << 10

var bodies = sync.Pool{New: func() any { return new([bodyBuffer]byte) }}
