// Package endpoints knows, for the whole node, how the endpoints are doing that
// its pods connect to: how much each has to carry, and which ones fail.
//
//	endpoints.go  Registry: what route asks, Connect, what is remembered
//	lease.go      a connection's share in an endpoint, and how it went
//	health.go     when an endpoint is ejected, and for how long
//	metrics.go    ambit_endpoint_*
//
// An endpoint that fails [Threshold] times in a row is ejected: connections go to
// others. After a time that grows with every ejection one connection tries it;
// only if that is established do others follow. A success, wherever it comes
// from, makes good for all failures before it.
//
// A failure is a connection that could not be established for a reason that may
// lie with the endpoint. Whoever reports it decides that; what happens to an
// established connection is no failure, because many protocols end theirs by a
// reset. Who carries requests knows more, and goes by whether they are answered.
//
// The pods of a node share what they find out, so that not everyone has to pay
// for it. What only one of them cannot reach, by a NetworkPolicy say, is tried
// less by the others too, until one of them succeeds.
//
// Invariants: at most half of those that a connection could have gone to are
// ejected, so that what is left has to carry twice its load at most, and a
// fault of our own does not pass for one of everybody else; every connection is
// counted until its lease ends; an endpoint without connection or failure is
// forgotten, and the number of those without connection is bounded.
//
// Choosing is route's job, connecting and trying again outbound's. What the
// controller says of an endpoint's health is in the snapshot, not here.
package endpoints

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Key is an endpoint: a workload at an address and port. The workload alone
// would not do, since one of its ports may fail while others work, and a pod
// that comes back under its name at another address starts afresh.
type Key struct {
	UID    string
	Target netip.AddrPort
}

const (
	// memory is how long failures and ejections are remembered after the last:
	// as long as the longest ejection.
	memory = maxEjection
	// sweepEvery is how often it is looked for what can be forgotten.
	sweepEvery = time.Minute
	// maxIdle is about how many endpoints are known besides those with a
	// connection: more than a node's pods connect to in the time of memory, and
	// 2 MiB at most.
	maxIdle = 10_000
)

// Config of a Registry. All fields are required but Now.
type Config struct {
	Registerer prometheus.Registerer
	Logger     *slog.Logger
	Now        func() time.Time
}

// Registry knows the endpoints. One serves all pods of the process.
type Registry struct {
	// Fixed after New.
	now     func() time.Time
	logger  *slog.Logger
	metrics *metrics
	maxIdle int

	// distrusted counts the endpoints that are. While it is 0, nothing is
	// looked up to tell that an endpoint is not ejected.
	distrusted atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	all     map[Key]*endpoint
	idle    int // of all, those without a connection
	sweptAt time.Time
}

// New makes a Registry that knows nothing and registers its metrics.
func New(cfg Config) *Registry {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Registry{now: cfg.Now, logger: cfg.Logger, maxIdle: maxIdle, all: map[Key]*endpoint{}, sweptAt: cfg.Now()}
	r.metrics = newMetrics(cfg.Registerer, r)
	return r
}

// Load is how many connections the node's pods have to an endpoint or are
// establishing, and of connections for requests, how many requests are under way. A recent failure counts as a connection: an endpoint that refuses
// at once would look idle, and draw everybody to it.
func (r *Registry) Load(uid string, target netip.AddrPort) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.all[Key{uid, target}]
	if e == nil {
		return 0
	}
	load := e.active + int(e.asked.Load())
	if e.failures > 0 && r.now().Sub(e.failedAt) < baseEjection {
		load += e.failures
	}
	return max(0, load)
}

// Ejected tells that an endpoint is to be left alone.
func (r *Registry) Ejected(uid string, target netip.AddrPort) bool {
	if r.distrusted.Load() == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.all[Key{uid, target}]
	return e != nil && e.keptOut(r.now())
}

// Status is what is known of one endpoint.
type Status struct {
	Workload string `json:"workload"`
	Target   string `json:"target"`
	// Connections that live or are being established.
	Connections int `json:"connections"`
	// Failures in a row.
	Failures int `json:"failures"`
	// Ejections that count for how long the next one is.
	Ejections int    `json:"ejections"`
	State     string `json:"state"`
	// EjectedUntil is nil of an endpoint that is not ejected.
	EjectedUntil *time.Time `json:"ejected_until,omitempty"`
}

// Statuses lists what is known, by workload and target.
func (r *Registry) Statuses() []Status {
	r.mu.Lock()
	now := r.now()
	all := make([]Status, 0, len(r.all))
	for k, e := range r.all {
		s := Status{
			Workload: k.UID, Target: k.Target.String(),
			Connections: e.active, Failures: e.failures, Ejections: e.ejections, State: e.state(now),
		}
		if now.Before(e.until) && e.distrusted {
			until := e.until
			s.EjectedUntil = &until
		}
		all = append(all, s)
	}
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Target, b.Target))
	})
	return all
}

// ejected counts the endpoints that are left alone now.
func (r *Registry) ejected() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for _, e := range r.all {
		if e.keptOut(now) {
			n++
		}
	}
	return n
}

// releaseLocked takes one connection from e, and forgets e if it may be.
func (r *Registry) releaseLocked(key Key, e *endpoint) {
	now := r.now()
	if e.active--; e.active == 0 {
		if r.idle++; e.forgettable(now) || r.idle > r.maxIdle {
			r.forgetLocked(key, e)
		}
	}
	if now.Sub(r.sweptAt) < sweepEvery {
		return
	}
	r.sweptAt = now
	for key, e := range r.all {
		if e.active == 0 && e.forgettable(now) {
			r.forgetLocked(key, e)
		}
	}
}

// forgetLocked drops what has no connection.
func (r *Registry) forgetLocked(key Key, e *endpoint) {
	r.trustLocked(e)
	r.idle--
	delete(r.all, key)
}
