package feed

import (
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// metrics of a Client, under ambit_feed_.
type metrics struct {
	reconnects prometheus.Counter
	rejected   *prometheus.CounterVec
	// lastPush is when, in Unix nanoseconds; 0 before the first.
	lastPush   atomic.Int64
	collectors []prometheus.Collector
}

func newMetrics(c *Client) *metrics {
	m := &metrics{
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_feed_reconnects_total",
			Help: "Streams or attempts at a stream to the controller that ended in an error.",
		}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_feed_rejected_total",
			Help: "Resources from the controller that could not be read, by type.",
		}, []string{"type"}),
	}
	m.collectors = []prometheus.Collector{
		m.reconnects, m.rejected,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ambit_feed_connected",
			Help: "1 while the controller is being followed.",
		}, func() float64 {
			if c.Connected() {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ambit_feed_last_push_age_seconds",
			Help: "Time since the last response of the controller; NaN before the first.",
		}, func() float64 {
			last := m.lastPush.Load()
			if last == 0 {
				return math.NaN()
			}
			return time.Since(time.Unix(0, last)).Seconds()
		}),
	}
	for _, t := range workload.WaypointTypes {
		m.rejected.WithLabelValues(shortType(t))
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "ambit_feed_resources",
			Help:        "Resources that are in force, by type.",
			ConstLabels: prometheus.Labels{"type": shortType(t)},
		}, func() float64 { return float64(c.config.Store.Snapshot().Count(t)) }))
	}
	return m
}

func (m *metrics) pushed(at time.Time) { m.lastPush.Store(at.UnixNano()) }

func (m *metrics) register(to prometheus.Registerer) error {
	if to == nil {
		return nil
	}
	for _, c := range m.collectors {
		if err := to.Register(c); err != nil {
			return fmt.Errorf("register feed metrics: %w", err)
		}
	}
	return nil
}

// shortType is the last part of a type URL: Address, Authorization and so on.
func shortType(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }
