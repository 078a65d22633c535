// Package conns knows the live connections of the node, and tells of each one
// once: in the access log and in the metrics.
//
//	conns.go    Registry: Open, Fail, the live ones, cutting one
//	reason.go   why a connection ended
//	access.go   the one line of the access log
//	refuse.go   tunnels that are not let in; how much of a flood is logged
//	metrics.go  istio_tcp_*, by the labels that dashboards query
//
// Invariants: every connection gets exactly one access-log line, when it ended
// or was refused, but that refusals in a flood are only counted; bytes are in the counters while the connection lives; labels
// are looked up once per connection.
//
// Moving bytes is relay's job, deciding is route's and policy's.
package conns

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Direction is seen from the pod that the connection is recorded for.
type Direction string

const (
	Outbound Direction = "outbound"
	Inbound  Direction = "inbound"
	// Waypoint: of the waypoint that stands between the two pods.
	Waypoint Direction = "waypoint"
)

// Transport is what carried a connection between the two pods.
type Transport string

const (
	// HBONE: a mutual TLS tunnel.
	HBONE Transport = "hbone"
	// Local: inside this process, between two pods of the node.
	Local Transport = "local"
	// Plaintext: plain TCP, the peer's identity is unknown.
	Plaintext Transport = "plaintext"
)

// Peer is one side of a connection. What is not known stays zero.
type Peer struct {
	Addr     netip.AddrPort
	Identity spiffe.ID
	Workload *workload.Workload
}

// Attempt is a connection as far as it is known.
type Attempt struct {
	Direction           Direction
	Transport           Transport
	Source, Destination Peer
	// Tunnel is the address of the tunnel's accepting end, if there is a tunnel;
	// Destination.Addr then is what is asked for through it.
	Tunnel  netip.AddrPort
	Service *workload.Service
	// Client is for whom the source, a waypoint, makes the connection; invalid if it
	// is the source's own.
	Client netip.AddrPort
	// Policy that admitted or refused it, if one did.
	Policy string
	// Names by which the source knew a destination outside the mesh when it
	// connected, sorted.
	Names []string
	// Started is when it was accepted.
	Started time.Time
}

// Outside tells whether an outbound connection leaves the mesh: for what is
// neither a pod nor a Service that the mesh knows.
func (a *Attempt) Outside() bool {
	return a.Direction == Outbound && a.Transport == Plaintext && a.Destination.Workload == nil && a.Service == nil
}

// Registry holds the live connections.
type Registry struct {
	// Fixed after New.
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics

	failures limiters

	mu sync.Mutex
	// Guarded by mu.
	live map[*Conn]struct{}
}

// Config of a Registry. All fields are required but Now.
type Config struct {
	// Logger gets the access log.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// New makes an empty Registry and registers its metrics.
func New(cfg Config) *Registry {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Registry{
		log:     cfg.Logger,
		now:     cfg.Now,
		metrics: newMetrics(cfg.Registerer, cfg.Now),
		live:    map[*Conn]struct{}{},
	}
}

// Conn is one live connection. Whoever opened it ends it.
type Conn struct {
	Attempt

	registry *Registry
	series   *series
	ctx      context.Context
	cancel   context.CancelCauseFunc

	toServer, toClient atomic.Int64
	cut                atomic.Pointer[ended]
	once               sync.Once
}

type ended struct {
	reason Reason
	err    error
}

// Open records an established connection. It lives until End; its Context ends
// with ctx, or when it is cut.
func (r *Registry) Open(ctx context.Context, a Attempt) *Conn {
	c := &Conn{Attempt: a, registry: r}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.series = r.metrics.open(&c.Attempt)
	r.mu.Lock()
	r.live[c] = struct{}{}
	r.mu.Unlock()
	return c
}

// Fail records a connection that was never established.
func (r *Registry) Fail(a Attempt, reason Reason, err error) {
	r.metrics.fail(&a, reason)
	r.logFailure(&a, reason, err)
}

// Context ends when the connection must.
func (c *Conn) Context() context.Context { return c.ctx }

// Moved counts bytes, in the direction from client to server and back.
func (c *Conn) Moved(toServer, toClient int64) {
	c.toServer.Add(toServer)
	c.toClient.Add(toClient)
	// The ecosystem's received is the request direction, whoever reports.
	c.series.received.Add(float64(toServer))
	c.series.sent.Add(float64(toClient))
}

// Bytes so far, from client to server and back.
func (c *Conn) Bytes() (toServer, toClient int64) {
	return c.toServer.Load(), c.toClient.Load()
}

// Cut has the connection end for a reason of the caller's: a policy that now
// denies it, a certificate that was revoked.
func (c *Conn) Cut(reason Reason, err error) {
	c.cut.CompareAndSwap(nil, &ended{reason, err})
	c.cancel(err)
}

// End records that the connection is over. Only the first call counts, and what
// Cut said goes before what it led to.
func (c *Conn) End(reason Reason, err error) {
	c.once.Do(func() {
		if cut := c.cut.Load(); cut != nil && reason != Closed {
			reason, err = cut.reason, cut.err
			c.registry.metrics.cut.WithLabelValues(string(c.Direction), string(reason)).Inc()
		}
		r := c.registry
		r.mu.Lock()
		delete(r.live, c)
		r.mu.Unlock()
		c.cancel(nil)
		r.metrics.close(c, reason)
		r.logEnd(c, reason, err)
	})
}

// Live lists the live connections, oldest first.
func (r *Registry) Live() []*Conn {
	r.mu.Lock()
	out := make([]*Conn, 0, len(r.live))
	for c := range r.live {
		out = append(out, c)
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b *Conn) int { return a.Started.Compare(b.Started) })
	return out
}

// Retried counts an endpoint that could not be reached where another one is
// tried. The connection itself has not failed by that.
func (r *Registry) Retried(reason Reason) { r.metrics.retries.WithLabelValues(string(reason)).Inc() }
