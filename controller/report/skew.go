package report

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ambit-mesh/ambit/controller/ca"
)

const (
	// skewWorthAWord is far more than a clock that somebody sets is wrong by, and
	// than a heartbeat is late by; certificates bear four times as much.
	skewWorthAWord = 30 * time.Second
	// skewStep: a clock that drifts is not told of every time.
	skewStep = 10 * time.Second
)

// skew is how far a node's clock is ahead of this process's; guarded by Registry.mu.
type skew struct {
	ahead time.Duration
	known bool
	// twice: the last two heartbeats say so. One alone may have been late.
	twice bool
}

// measure takes what a node's clock showed when it sent what arrived now.
func (s *skew) measure(sent *timestamppb.Timestamp, arrived time.Time) {
	if sent == nil || !sent.IsValid() { // of a ztunnel that does not tell
		*s = skew{}
		return
	}
	before := s.known && s.ahead.Abs() >= skewWorthAWord
	s.ahead, s.known = sent.AsTime().Sub(arrived.Round(0)), true
	s.twice = before && s.ahead.Abs() >= skewWorthAWord
}

// problems is what a person has to hear of it.
func (s *skew) problems() []string {
	if !s.twice {
		return nil
	}
	direction := "ahead of"
	if s.ahead < 0 {
		direction = "behind"
	}
	return []string{fmt.Sprintf("ClockSkewed: the node's clock is %s %s the controller's; from %s on its certificates, or those of its peers, are not valid yet or have ended: set the clocks of both nodes (NTP)",
		s.ahead.Abs().Truncate(skewStep), direction, ca.Backdate)}
}

var skewDesc = prometheus.NewDesc("ambit_node_clock_skew_seconds", "How far a node's clock is ahead of the controller's, as of its last heartbeat.", []string{"node"}, nil)

// skews is a collector of all nodes'.
type skews struct{ registry *Registry }

func (s skews) Describe(out chan<- *prometheus.Desc) { out <- skewDesc }

func (s skews) Collect(out chan<- prometheus.Metric) {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	for name, n := range s.registry.nodes {
		if n.skew.known && !s.registry.isSilentLocked(n) {
			out <- prometheus.MustNewConstMetric(skewDesc, prometheus.GaugeValue, n.skew.ahead.Seconds(), name)
		}
	}
}
