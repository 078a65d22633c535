package report

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// SilentAfter is how old a node's last sign of life may be. Nodes send one
// every 5 s: two may be late or lost.
const SilentAfter = 15 * time.Second

// Acks knows what configuration the nodes have.
type Acks interface {
	// Behind returns the nodes that have an open configuration stream and have
	// not acknowledged all of a publication.
	Behind(publication uint64) []string
	// Connected returns the nodes that have an open configuration stream.
	Connected() []string
}

// Tunnels knows which nodes run a ztunnel, heard of or not.
type Tunnels interface {
	// MayRun says whether a ztunnel may be carrying connections on a node.
	MayRun(node string) bool
	// Exists says whether the node is there at all.
	Exists(node string) bool
}

// RegistryConfig is what a [Registry] needs.
type RegistryConfig struct {
	Acks    Acks
	Tunnels Tunnels
	// Leases of the system namespace, for heartbeats.
	Leases coordinationclient.LeaseInterface
	// Now is the clock, time.Now when nil.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Registry is what all nodes together are known to have observed.
type Registry struct {
	cfg RegistryConfig
	// Set before anything runs.
	onCaptured, onObserved func(types.NamespacedName)
	onNode                 func(node string)

	mu         sync.Mutex
	nodes      map[string]*node
	memories   map[types.UID]*memory
	captured   map[types.UID]struct{}
	leaving    map[types.UID]struct{}
	generation uint64
	view       *CapturedView // the sets as a value; nil after a change
	published  *Publication  // nil until the first one
	// judgedFrom is when this process began to lead: no node is silent before
	// it had the chance to find the new leader.
	judgedFrom time.Time
}

// node is what is known of one node; guarded by Registry.mu.
type node struct {
	// heartbeat is the last sign of life; it may come from a Lease.
	heartbeat time.Time
	// written is the heartbeat that the Lease has.
	written  time.Time
	podName  string
	version  string
	problems []string
	// roots that the certificates of the node chain to, if it told.
	roots     []string
	rootsTold bool
	skew      skew
	// problemsWritten is what the Lease has.
	problemsWritten []string
	// silent as it was last told to onNode.
	silent bool
	// complete: a whole snapshot has been received in this process.
	complete    bool
	session     *session
	observed    map[types.UID]Observation
	withdrawals map[types.UID]*withdrawal
}

// NewRegistry returns a registry that knows nothing.
func NewRegistry(cfg RegistryConfig) *Registry {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Registry{
		cfg:      cfg,
		nodes:    map[string]*node{},
		memories: map[types.UID]*memory{},
		captured: map[types.UID]struct{}{},
		leaving:  map[types.UID]struct{}{},
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(
			skews{r},
			r.gauge("ambit_workloads_captured", "Pods published as HBONE.", func() int { return len(r.captured) }),
			r.gauge("ambit_withdrawals_pending", "Pods whose nodes wait to let them go.", r.pendingLocked),
			r.gauge("ambit_nodes_silent", "Nodes whose ztunnel does not report.", r.silentLocked),
		)
	}
	return r
}

func (r *Registry) gauge(name, help string, value func() int) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return float64(value())
	})
}

// OnObserved sets what is called, outside of any lock, when a node said
// something about a pod. Set it before anything runs.
func (r *Registry) OnObserved(f func(types.NamespacedName)) { r.onObserved = f }

// OnNode sets what is called, outside of any lock, when a node fell silent,
// came back, or completed its snapshot. Set it before anything runs.
func (r *Registry) OnNode(f func(node string)) { r.onNode = f }

// Run releases, watches for silence and keeps the heartbeats' Leases until ctx
// ends. Only the leader runs it.
func (r *Registry) Run(ctx context.Context) error {
	r.beginLeading()
	defer r.endLeading()
	if err := r.readHeartbeats(ctx); err != nil {
		return err
	}
	var group sync.WaitGroup
	group.Go(func() { tick(ctx, releaseInterval, r.release) })
	group.Go(func() { tick(ctx, silenceInterval, r.judge) })
	group.Go(func() { tick(ctx, leaseInterval, func() { r.writeHeartbeats(ctx) }) })
	group.Wait()
	return nil
}

func tick(ctx context.Context, interval time.Duration, f func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f()
		}
	}
}

func (r *Registry) beginLeading() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judgedFrom = r.cfg.Now()
}

// endLeading unsettles what was settled: another process writes from now on.
func (r *Registry) endLeading() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.memories {
		m.settled = false
	}
}

func (r *Registry) nodeLocked(name string) *node {
	n, ok := r.nodes[name]
	if !ok {
		n = &node{observed: map[types.UID]Observation{}, withdrawals: map[types.UID]*withdrawal{}}
		r.nodes[name] = n
	}
	return n
}

func (r *Registry) notifyNode(name string) {
	if r.onNode != nil {
		r.onNode(name)
	}
}
