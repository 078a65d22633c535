package policy

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Decisions, as the metric has them.
const (
	allowed = "allowed"
	refused = "refused"
	cut     = "cut"
)

// metrics count decisions by the policy that decided. There are as many series as
// there are policies, for those of policies that are gone go with them.
type metrics struct {
	decisions *prometheus.CounterVec

	mu sync.Mutex
	// Guarded by mu.
	policies map[string]bool
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_authorization_decisions_total",
			Help: "Connections to pods of this node by what policy decided, why, and which policy it was; of live ones, that they were cut.",
		}, []string{"decision", "reason", "policy"}),
		policies: map[string]bool{},
	}
	reg.MustRegister(m.decisions)
	return m
}

func (m *metrics) decided(j judgement, err error) {
	if err == nil {
		m.count(allowed, "", j)
		return
	}
	m.count(refused, conns.ReasonOf(err), j)
}

func (m *metrics) cut(j judgement) { m.count(cut, j.refusal.Reason, j) }

func (m *metrics) count(decision string, reason conns.Reason, j judgement) {
	name := ""
	if j.policy != nil {
		name = j.policy.Name
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policies[name] = true
	m.decisions.WithLabelValues(decision, string(reason), name).Inc()
}

// retain forgets the policies that are gone.
func (m *metrics) retain(s *workload.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.policies {
		if _, known := s.Authorization(name); !known && name != "" {
			m.decisions.DeletePartialMatch(prometheus.Labels{"policy": name})
			delete(m.policies, name)
		}
	}
}
