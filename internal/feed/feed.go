// Package feed keeps a workload.Store in step with the controller, over delta ADS.
//
//	feed.go          the client: connect, stay connected, reconnect
//	dial.go          TLS and credentials of one connection
//	stream.go        one stream: subscribe, apply, acknowledge
//	lookup.go        questions about single addresses
//	subscriptions.go what was asked for by name
//	resources.go     versions of what the controller sent, and what the disk lacks of it
//	disk.go          the last good state, on disk
//	merge.go         a file and what changed since -> the next file
//
// Invariants: a response is acknowledged only after the store has published
// it, because the controller takes the acknowledgement for a promise that
// nothing is routed by the older state any more. A resource that cannot be
// read is answered with a NACK that names it; its former state stays. A
// lost controller takes nothing away: the last state stays in force.
//
// What resources mean is workload's job, what to do without an answer the
// asker's.
package feed

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Config of a Client. Everything is needed unless said otherwise.
type Config struct {
	// Address of the controller, host:port. The host is also the name that
	// its certificate must have, unless ServerName is set.
	Address    string
	ServerName string
	// Node is who asks.
	Node Node
	// Roots that the controller's certificate must chain to. Called for every
	// connection; nil means that there are none yet.
	Roots func() *x509.CertPool
	// Revoked says what is revoked, the controller's own certificate perhaps; optional.
	Revoked func() *revocation.List
	// Token that proves who asks. Called for every stream.
	Token func() (string, error)
	// Store to keep in step. Nobody else applies to it.
	Store *workload.Store
	// Waypoint, if set, is the key under which what is for one waypoint alone is asked
	// for: see workload.WaypointAlias. Without it, none of that is.
	Waypoint string
	// OnDemand: hold only the addresses that were looked up.
	OnDemand bool
	// SnapshotPath is the file with the last good state; empty means none.
	SnapshotPath string
	Logger       *slog.Logger
	// Registerer for the metrics; optional.
	Registerer prometheus.Registerer
	// Dial opens a connection to Address; optional.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Node is the proxy that a Client speaks for.
type Node struct {
	// Role is the first part of the node id: ztunnel or waypoint.
	Role      string
	PodName   string
	Namespace string
	// NodeName in Kubernetes.
	NodeName  string
	ClusterID string
	// IPs of the pod; at least one.
	IPs []netip.Addr
}

// ID is ROLE~IP~POD.NAMESPACE~NAMESPACE.svc.cluster.local.
func (n Node) ID() string {
	return fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", n.Role, n.IPs[0], n.PodName, n.Namespace, n.Namespace)
}

// Client follows the controller.
type Client struct {
	// Fixed after New.
	config  Config
	logger  *slog.Logger
	metrics *metrics
	synced  chan struct{}
	// restart has an element when the stream is to be begun anew.
	restart chan struct{}

	resources *resources
	questions *questions
	troubles  *troubles
	connected atomic.Bool
	// unsaved is why the state on disk is not the current one; nil inside for none.
	unsaved  atomic.Pointer[error]
	syncOnce sync.Once
}

// New returns a client that does nothing until Run.
func New(config Config) (*Client, error) {
	switch {
	case config.Address == "":
		return nil, errors.New("feed: no Address")
	case config.Node.Role == "" || config.Node.PodName == "" || config.Node.Namespace == "" || len(config.Node.IPs) == 0:
		return nil, errors.New("feed: incomplete Node")
	case config.Roots == nil || config.Token == nil || config.Store == nil || config.Logger == nil:
		return nil, errors.New("feed: Roots, Token, Store and Logger are needed")
	}
	if config.OnDemand {
		config.Store.SetPartial()
	}
	c := &Client{
		config:    config,
		logger:    config.Logger,
		synced:    make(chan struct{}),
		restart:   make(chan struct{}, 1),
		resources: newResources(config.SnapshotPath != ""),
		questions: newQuestions(),
		troubles:  newTroubles(),
	}
	c.metrics = newMetrics(c)
	return c, c.metrics.register(config.Registerer)
}

// Synced is closed once the store has a complete state to work with: the first
// response of every type was applied, or the last state was loaded from disk.
// A state without the mesh's Config is not complete.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Connected tells whether the controller is being followed right now: a stream
// is open, and the first response of every type has come on it.
func (c *Client) Connected() bool { return c.connected.Load() }

// steady is how long a stream must live until the next failure counts as the first.
const steady = 10 * time.Second

// warnEvery is how often it is said again that there is no controller.
const warnEvery = time.Minute

// Run follows the controller until ctx ends. It returns ctx's error, after the
// last state is on disk.
func (c *Client) Run(ctx context.Context) error {
	if c.config.SnapshotPath != "" {
		c.load()
		// The last save comes after the last response.
		saveCtx, stopSaving := context.WithCancel(context.WithoutCancel(ctx))
		var saving sync.WaitGroup
		saving.Go(func() { c.save(saveCtx) })
		defer saving.Wait()
		defer stopSaving()
	}
	var wait backoff
	var warned time.Time
	for {
		started := time.Now()
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		level := slog.LevelWarn
		switch {
		case time.Since(started) >= steady:
			wait.reset()
			level = slog.LevelInfo // Controllers end streams now and then: the credentials are to be shown anew.
		case time.Since(warned) < warnEvery:
			level = slog.LevelDebug
		default:
			warned = time.Now()
		}
		delay := wait.next()
		c.metrics.reconnects.Inc()
		c.logger.Log(ctx, level, "configuration stream ended", "address", c.config.Address, "error", err, "retry_in", delay)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}

// apply brings one change into the store, and remembers it for reconnects and disk.
func (c *Client) apply(delta workload.Delta) []workload.Rejection {
	rejected := c.applyToStore(delta)
	c.resources.apply(delta, rejected)
	return rejected
}

func (c *Client) applyToStore(delta workload.Delta) []workload.Rejection {
	rejected := c.config.Store.Apply(delta)
	for _, r := range rejected {
		c.metrics.rejected.WithLabelValues(shortType(r.Type)).Inc()
		c.logger.Warn("resource rejected", "type", r.Type, "resource", r.Name, "error", r.Err)
	}
	return rejected
}

// anew ends the stream, so that the next one asks for what is needed.
func (c *Client) anew() {
	select {
	case c.restart <- struct{}{}:
	default:
	}
}

// awaited lists the types whose first response makes the state complete. With
// OnDemand no addresses come unasked.
func (c *Client) awaited() []string {
	return slices.DeleteFunc(c.wanted(), func(t string) bool {
		return c.config.OnDemand && t == workload.AddressType
	})
}

// wanted lists the types that the client asks for.
func (c *Client) wanted() []string {
	if c.config.Waypoint != "" {
		return slices.Clone(workload.WaypointTypes[:])
	}
	return slices.Clone(workload.Types[:])
}

// settle closes Synced, if the state can be worked with.
func (c *Client) settle() {
	if c.config.Store.Snapshot().Configured() {
		c.syncOnce.Do(func() { close(c.synced) })
	}
}
