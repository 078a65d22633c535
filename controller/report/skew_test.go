package report

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/types/known/timestamppb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

// A node's clock is compared at every heartbeat: what it is off by is a metric, and,
// from half a minute on, a problem of the node that a person gets to read; not for one
// heartbeat that was late.
func TestClocksAreCompared(t *testing.T) {
	for name, c := range map[string]struct {
		ahead []time.Duration // at one heartbeat after the other
		said  string          // begins with; nothing if empty
		last  float64
	}{
		"right":                  {[]time.Duration{0, 0, 0}, "", 0},
		"nearly right":           {[]time.Duration{29 * time.Second, 29 * time.Second}, "", 29},
		"behind":                 {[]time.Duration{-185 * time.Second, -185 * time.Second}, "ClockSkewed: the node's clock is 3m0s behind the controller's", -185},
		"ahead":                  {[]time.Duration{time.Hour, time.Hour + time.Second}, "ClockSkewed: the node's clock is 1h0m0s ahead of the controller's", 3601},
		"one late heartbeat":     {[]time.Duration{0, -40 * time.Second}, "", -40},
		"set right again":        {[]time.Duration{time.Hour, time.Hour, 0}, "", 0},
		"ahead for the 1st time": {[]time.Duration{time.Hour}, "", 3600},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.lead()
				s := w.connect("n1")
				for _, ahead := range c.ahead {
					time.Sleep(5 * time.Second)
					w.registry.beat(s, &reportapi.Heartbeat{Problems: []string{"BPFFSMissing: mount it"}, Now: timestamppb.New(time.Now().Add(ahead))})
				}
				if got := testutil.ToFloat64(skews{w.registry}); got != c.last {
					t.Errorf("the metric says %v s, want %v", got, c.last)
				}
				time.Sleep(leaseInterval + time.Second)
				synctest.Wait()
				lease, err := w.client.CoordinationV1().Leases(system).Get(t.Context(), "ztunnel-n1", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				problems := lease.Annotations[annotationProblems]
				if !strings.HasSuffix(problems, "BPFFSMissing: mount it") || strings.HasPrefix(problems, "ClockSkewed") != (c.said != "") || !strings.HasPrefix(problems, c.said) {
					t.Errorf("problems %q, want %q first", problems, c.said)
				}
			})
		})
	}
}

// A ztunnel of before does not tell what its clock shows: nothing is said of it.
func TestClocksThatAreNotTold(t *testing.T) {
	w := newWorld(t)
	s := w.connect("n1")
	for range 2 {
		w.registry.beat(s, &reportapi.Heartbeat{})
	}
	if n := testutil.CollectAndCount(skews{w.registry}); n != 0 {
		t.Errorf("%d nodes are measured", n)
	}
}
