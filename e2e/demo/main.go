// Command demo shows Ambit's main job on the cluster of this checkout, step by
// step, each with its evidence. It fails at the first step whose evidence is
// not there, and leaves the cluster up.
//
//	make demo
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// step is one thing that is shown.
type step struct {
	title string
	show  func(context.Context) error
}

func run(ctx context.Context) error {
	bed, err := testbed.Find()
	if err != nil {
		return err
	}
	d := &demo{bed: bed}
	steps := []step{
		{"Install Ambit with its own command line", d.install},
		{"Deploy a shop: HTTP, gRPC, a protocol in which the server speaks first, WebSockets, on three nodes", d.deploy},
		{"Without the mesh: what the shop says can be read between the nodes", d.readable},
		{"Label the namespace, and nothing else", d.label},
		{"The same long-lived connections are still alive", d.alive},
		{"New connections: nothing readable, and only to port 15008", d.unreadable},
		{"What the mesh observes", d.workloads},
		{"One access-log line a connection, with both identities", d.accessLog},
		{"The server sees the client's own address", d.clientAddress},
		{"The kubelet's probes passed all along", d.probes},
	}
	start := time.Now()
	for i, s := range steps {
		fmt.Printf("\n== %d. %s\n\n", i+1, s.title)
		if err := s.show(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
	}
	fmt.Printf(`
All %d steps held, in %s. The cluster is up. What to type next:

  export KUBECONFIG=%s PATH=%s/bin:$PATH
  kubectl get workloads.ambit.mesh -A -o wide
  kubectl -n ambit-system logs daemonset/ztunnel -f
  kubectl label namespace shop ambit.mesh/dataplane-mode-    # out again, connections live on
  ambit check
  make cluster-reboot NODE=n2                                # a power cut
  make cluster-down
`, len(steps), time.Since(start).Round(time.Second), bed.Kubeconfig(), bed.Root())
	return nil
}
