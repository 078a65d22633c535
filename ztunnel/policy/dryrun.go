package policy

import (
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/conns"
)

const (
	// maxDryRuns bounds the series of dry runs: policies are few, but who connects
	// to whom is not. What does not fit is counted together.
	maxDryRuns = 1000
	// dryRunLogEvery is how often one and the same is told of in the log.
	dryRunLogEvery = time.Minute
	// others stands for what does not fit.
	others = "other"
)

// dryRuns tell what policies that are not in force would have denied.
type dryRuns struct {
	log    *slog.Logger
	denied *prometheus.CounterVec

	mu sync.Mutex
	// Guarded by mu.
	loggedAt map[dryRun]time.Time
}

// dryRun is what is told apart.
type dryRun struct{ policy, source, destination string }

func newDryRuns(reg prometheus.Registerer, log *slog.Logger) *dryRuns {
	d := &dryRuns{
		log: log,
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_authorization_dry_run_denials_total",
			Help: "Connections that were admitted and that a policy would have denied, were it not a dry run.",
		}, []string{"policy", "source", "destination"}),
		loggedAt: map[dryRun]time.Time{},
	}
	reg.MustRegister(d.denied)
	return d
}

func (d *dryRuns) report(a *conns.Attempt, policies []*authz.Policy) {
	for _, p := range policies {
		key, log := d.count(dryRun{p.Name, sourceOf(a), a.Destination.Workload.Namespace + "/" + ownerOf(a)})
		if log {
			d.log.Info("connection would be denied", "policy", p.Name,
				"source", key.source, "src.addr", a.Source.Addr.String(),
				"destination", key.destination, "dst.addr", a.Destination.Addr.String())
		}
	}
}

// count tells whether it is to be told of in the log, and as what it was counted.
func (d *dryRuns) count(key dryRun) (as dryRun, log bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	last, known := d.loggedAt[key]
	if !known && len(d.loggedAt) >= maxDryRuns {
		key = dryRun{others, others, others}
		last = d.loggedAt[key]
	}
	d.denied.WithLabelValues(key.policy, key.source, key.destination).Inc()
	now := time.Now()
	if log = now.Sub(last) >= dryRunLogEvery; log || !known {
		d.loggedAt[key] = now
	}
	return key, log
}

// sourceOf is the identity, or what the address says who it is, or nothing.
func sourceOf(a *conns.Attempt) string {
	switch {
	case !a.Source.Identity.IsZero():
		return a.Source.Identity.String()
	case a.Source.Workload != nil:
		return a.Source.Workload.Namespace + "/" + a.Source.Workload.Name
	}
	return "unknown"
}

func ownerOf(a *conns.Attempt) string {
	if w := a.Destination.Workload; w.Owner != "" {
		return w.Owner
	}
	return a.Destination.Workload.Name
}
