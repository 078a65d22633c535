// Package policy enforces, at the destination, what authz decides.
//
//	admit.go    a connection that wants in: held until what decides is known, then
//	            let in or refused
//	follow.go   a connection that lives: judged again whenever something changed
//	            that it was judged by, and cut when it is no longer let in
//	judge.go    (snapshot, connection) -> let in, refuse, or nobody can say yet
//	dryrun.go   what policies that are not in force would have denied
//	metrics.go  decisions, by policy
//
// Invariants: a policy that applies and is not known yet holds a connection, for
// holdTime, and then refuses it, as does a workload of which what was said last could
// not be read; nothing is ever let in because something has not come. A connection that is established is judged by the snapshot of that moment or
// by a later one, whatever it was let in by: it is registered first and judged then,
// while whoever judges all of them takes the snapshot first and looks at who is
// registered then. What is not affected by a change is not judged again.
//
// Which policies apply to a workload is internal/workload's to know, what they mean
// internal/authz's, carrying connections inbound's.
package policy

import (
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// holdTime is how long a connection waits for what decides on it: many times what a
// controller takes to send it, and less than a source waits that may try another
// endpoint. A live connection goes on for as long, if a policy is attached to its
// workload that has not come.
const holdTime = 2 * time.Second

// Config of an Enforcer. All fields are required.
type Config struct {
	Snapshot func() *workload.Snapshot
	// Synced is closed once the snapshot is complete: before, that a policy is not
	// there says nothing.
	Synced     <-chan struct{}
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Enforcer decides for all pods of the node.
type Enforcer struct {
	// Fixed after New.
	cfg     Config
	metrics *metrics
	dryRuns *dryRuns
	// again has an element when a live connection waits for a policy.
	again chan struct{}

	mu sync.Mutex
	// Guarded by mu: the live connections, by their workload's uid.
	live map[string]map[*conns.Conn]followed
}

// New makes an Enforcer. Run it before connections are to be followed.
func New(cfg Config) *Enforcer {
	return &Enforcer{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), dryRuns: newDryRuns(cfg.Registerer, cfg.Logger),
		again: make(chan struct{}, 1),
		live:  map[string]map[*conns.Conn]followed{},
	}
}

func (e *Enforcer) synced() bool {
	select {
	case <-e.cfg.Synced:
		return true
	default:
		return false
	}
}
