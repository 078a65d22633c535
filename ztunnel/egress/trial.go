package egress

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

const (
	// maxTrials bounds the series: policies are few, but what pods want to reach is not. What does not fit is counted together.
	maxTrials = 1000
	// trialLogEvery is how often one and the same is told of in the log.
	trialLogEvery = time.Minute
	// others stands for what does not fit.
	others = "other"
	// unreadable stands for a destination that could not be read.
	unreadable = "unreadable"
)

// trials tell what policies on trial would have refused.
type trials struct {
	refused *prometheus.CounterVec

	mu sync.Mutex
	// Guarded by mu.
	loggedAt map[trial]time.Time
}

// trial is what is told apart.
type trial struct{ policy, source, destination, protocol string }

func newTrials(registerer prometheus.Registerer) *trials {
	t := &trials{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_egress_would_refuse_total",
			Help: "What pods sent that an EgressPolicy on trial would not have let out of the mesh: connections of TCP, packets of everything else.",
		}, []string{"policy", "source", "destination", "protocol"}),
		loggedAt: map[trial]time.Time{},
	}
	registerer.MustRegister(t.refused)
	return t
}

// add tells whether it is to be told of in the log, and as what it was counted.
func (t *trials) add(key trial, count uint64) (as trial, log bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last, known := t.loggedAt[key]
	if !known && len(t.loggedAt) >= maxTrials {
		key = trial{others, others, others, others}
		last = t.loggedAt[key]
	}
	t.refused.WithLabelValues(key.policy, key.source, key.destination, key.protocol).Add(float64(count))
	now := time.Now()
	if log = now.Sub(last) >= trialLogEvery; log {
		t.loggedAt[key] = now
	}
	return key, log
}

// tell counts what a policy on trial would have refused, and has it in the log from time to time.
func (p *Pod) tell(policy, protocol string, f Flow, count uint64, more ...any) {
	p.tellAs(trial{policy, p.whose(), labelOf(f), protocol}, count, append([]any{"dst.addr", f.address(), "dst.names", f.Names}, more...)...)
}

func (p *Pod) tellAs(key trial, count uint64, more ...any) {
	if as, log := p.metrics.trials.add(key, count); log {
		p.logger.Info("egress policy on trial would refuse", append([]any{
			"policy", key.policy, "source", as.source, "destination", as.destination, "protocol", key.protocol,
		}, more...)...)
	}
}

// whose is the pod's identity, or who it says to be of whom nothing else is known.
func (p *Pod) whose() string {
	w := p.source()
	if w.Identity.IsZero() {
		return w.Namespace + "/" + w.Name
	}
	return w.Identity.String()
}

// labelOf is a destination as an exception would say it: by its name, if it has one.
func labelOf(f Flow) string {
	switch {
	case len(f.Names) == 0:
		return f.address()
	case f.Destination.Port() == 0:
		return f.Names[0]
	}
	return fmt.Sprintf("%s:%d", f.Names[0], f.Destination.Port())
}

// address is without a port where there is none.
func (f Flow) address() string {
	switch {
	case !f.Destination.Addr().IsValid():
		return unreadable
	case f.Destination.Port() == 0:
		return f.Destination.Addr().String()
	}
	return f.Destination.String()
}

// protocolOf is how a protocol is told of. TCP that ztunnel does not carry is no connection of its own.
func protocolOf(number uint8) string {
	switch number {
	case unix.IPPROTO_UDP:
		return UDP.String()
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return "ICMP"
	}
	return Other.String()
}
