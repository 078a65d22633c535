package simulated

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// followed waits until all ztunnels follow this replica, and says how long that took.
func (b *bed) followed(within time.Duration, leader *Process) time.Duration {
	b.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(b.t.Context(), within)
	defer cancel()
	err := wait(ctx, func() error {
		if leading := b.Leading(); leading != leader {
			return fmt.Errorf("it does not lead")
		}
		metrics, err := leader.Metrics(ctx)
		if err != nil {
			return err
		}
		if n := metrics["ambit_push_clients"]; n < float64(len(b.config.Nodes)) {
			return fmt.Errorf("%g ztunnels follow it", n)
		}
		for _, node := range b.config.Nodes {
			metrics, err := b.Ztunnel(node).Metrics(ctx)
			if err != nil {
				return err
			}
			if metrics["ambit_feed_connected"] != 1 {
				return fmt.Errorf("the ztunnel of node %s follows nobody", node)
			}
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return time.Since(began)
}

// sum adds up a metric over its labels, of those that have all these words.
func (b *bed) sum(p *Process, name string, words ...string) (sum float64) {
	b.t.Helper()
	metrics, err := p.Metrics(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for series, value := range metrics {
		counts := strings.HasPrefix(series, name+"{")
		for _, word := range words {
			counts = counts && strings.Contains(series, word)
		}
		if counts {
			sum += value
		}
	}
	return sum
}

// TestAnotherReplicaTakesOver ends the leader, once gently and once by force.
// The other one pushes nothing that the nodes have, knows who is captured, and
// finishes what needs every node's acknowledgement.
func TestAnotherReplicaTakesOver(t *testing.T) {
	const fleet = 500
	b := start(t, Config{
		Nodes: []string{"a", "b"}, Controllers: 2, Workloads: fleet,
		Pods: []Pod{{Name: "client", Node: "a"}, {Name: "far", Node: "b", Port: port}, {Name: "late", Node: "b", Port: port, Outside: true}},
	})
	b.serve("far")
	b.serve("late")
	b.wire = watchWire(t, b.Network().Wire())
	live := b.hold("client", b.Service("far"))

	for _, c := range []struct {
		name   string
		signal syscall.Signal
		within time.Duration
	}{
		// The Lease is let go of, or has to expire.
		{"gently", syscall.SIGTERM, 8 * time.Second},
		{"by force", syscall.SIGKILL, 15 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			leader := b.Leading()
			replica, other := 0, 1
			if leader == b.controllers[1] {
				replica, other = 1, 0
			}
			if err := leader.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			t.Logf("all nodes follow the other one after %s", b.followed(c.within, b.controllers[other]))
			next := b.controllers[other]
			time.Sleep(300 * time.Millisecond) // for what it should not push
			if sent, removed := b.sum(next, "ambit_push_resources_sent_total"), b.sum(next, "ambit_push_resources_removed_total"); sent+removed > 0 {
				t.Errorf("it pushed %g resources and %g removals, though nothing changed", sent, removed)
			}
			if resumed := b.sum(next, "ambit_push_resumed_resources_total", `outcome="unchanged"`); resumed < 2*fleet {
				t.Errorf("nodes came back with %g resources", resumed)
			}
			live.talks()
			b.answers("client", b.Service("far"))

			// What is new goes out, and what needs all nodes comes to its end.
			if err := b.Enrol("late", true); err != nil {
				t.Fatal(err)
			}
			b.awaitCapture()
			b.answers("client", b.Service("late"))
			if err := b.Enrol("late", false); err != nil {
				t.Fatal(err)
			}
			b.state("b", "late", "Released")
			if sent := b.sum(next, "ambit_push_resources_sent_total"); sent == 0 || sent > 40 {
				t.Errorf("it pushed %g resources for one pod that came and went", sent)
			}
			b.endsReadable()
			<-leader.Ended()
			if err := b.StartController(t.Context(), replica); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// state waits until a node says so of a pod.
func (b *bed) state(node, pod, want string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 15*time.Second)
	defer cancel()
	err := wait(ctx, func() error {
		var statuses []struct{ Name, State, Reason string }
		if err := b.Ztunnel(node).Dump(ctx, "pods", &statuses); err != nil {
			return err
		}
		for _, s := range statuses {
			if s.Name == pod && s.State == want {
				return nil
			}
		}
		return fmt.Errorf("%+v", statuses)
	})
	if err != nil {
		b.t.Fatalf("wait for %s to be %s: %v", pod, want, err)
	}
}
