// Command memory measures what the shipped ztunnel occupies with meshes of
// different sizes, on a simulated node:
//
//	go run ./e2e/bench/memory -rounds 3 -out docs/benchmarks
//
// A round starts a mesh anew and waits until its ztunnel is ready, has learnt
// everything, and for a while more; then it reads the kernel's figures and the
// process's own. Nothing passes through the ztunnel meanwhile: what connections
// take is for benchmarks of connections.
//
//	main.go     the variants and their rounds
//	results.go  medians, the JSON and the page
//
// Root is needed. The numbers of a machine that is busy are good for memory and
// not for times.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/simulated"
)

// variant is one kind of mesh.
type variant struct {
	name      string
	workloads int
	onDemand  bool
	// asked is how many services a pod of the node connects to: with onDemand,
	// those are what is known.
	asked int
}

var variants = []variant{
	{name: "full-1000", workloads: 1_000},
	{name: "full-100000", workloads: 100_000},
	{name: "on-demand-100000", workloads: 100_000, onDemand: true, asked: 20},
}

const (
	// podsPerService of the fleet.
	podsPerService = 50
	// askMode as first argument makes this program a client in a pod.
	askMode = "ask"
	// roundTimeout is for the controller too, which reads 100,000 pods on two processors.
	roundTimeout = 5 * time.Minute
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == askMode {
		ask(os.Args[2:])
		return
	}
	simulated.Isolate()
	rounds := flag.Int("rounds", 3, "rounds of each variant")
	settle := flag.Duration("settle", 30*time.Second, "time between knowing everything and the measurement")
	out := flag.String("out", "docs/benchmarks", "folder for memory.json and memory.md")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rounds, *settle, *out); err != nil {
		fmt.Fprintln(os.Stderr, "memory:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, settle time.Duration, out string) error {
	var results []result
	for _, v := range variants {
		values := make(map[string][]float64)
		for i := range rounds {
			measured, err := v.round(ctx, settle)
			if err != nil {
				return fmt.Errorf("round %d of %s: %w", i+1, v.name, err)
			}
			for metric, value := range measured {
				values[metric] = append(values[metric], value)
			}
			fmt.Printf("%s, round %d: %.1f MiB resident, %.1f MiB of heap, %.0f addresses known, synced after %.2f s\n",
				v.name, i+1, measured["rss_mib"], measured["heap_mib"], measured["known"], measured["synced_s"])
		}
		results = append(results, summaries(v.name, values)...)
	}
	return write(out, results, settle)
}

// round measures one mesh.
func (v variant) round(ctx context.Context, settle time.Duration) (_ map[string]float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	mesh, err := simulated.Start(ctx, simulated.Config{
		Nodes: []string{"node"}, Pods: []simulated.Pod{{Name: "client", Node: "node"}},
		Workloads: v.workloads, PodsPerService: podsPerService, OnDemand: v.onDemand,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, mesh.Stop()) }()
	ztunnel := mesh.Ztunnel("node")
	if err := ztunnel.WaitReady(ctx); err != nil {
		return nil, err
	}
	synced := time.Since(ztunnel.Started())
	if err := mesh.WaitShown(ctx); err != nil {
		return nil, err
	}
	if err := v.askFrom(mesh); err != nil {
		return nil, err
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	measured, err := measure(ctx, ztunnel)
	if err != nil {
		return nil, err
	}
	measured["synced_s"] = synced.Seconds()
	return measured, v.check(measured["known"])
}

// check demands that the ztunnel knew what the variant is about.
func (v variant) check(known float64) error {
	of := v.workloads
	if v.onDemand {
		of = v.asked * podsPerService
	}
	if want := float64(of + of/podsPerService); known < want || known > want+10 {
		return fmt.Errorf("%.0f addresses are known, want %.0f and those of the node", known, want)
	}
	return nil
}

func measure(ctx context.Context, ztunnel *simulated.Process) (map[string]float64, error) {
	memory, err := ztunnel.Memory()
	if err != nil {
		return nil, err
	}
	metrics, err := ztunnel.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	const mib = 1 << 20
	return map[string]float64{
		"rss_mib":      float64(memory.Resident) / mib,
		"pss_mib":      float64(memory.Proportional) / mib,
		"peak_rss_mib": float64(memory.Peak) / mib,
		"heap_mib":     metrics["go_memstats_heap_alloc_bytes"] / mib,
		"known":        metrics["ambit_config_addresses"],
	}, nil
}

// askFrom has the pod connect to services, so that they become known.
func (v variant) askFrom(mesh *simulated.Mesh) error {
	if v.asked == 0 {
		return nil
	}
	command := exec.Command("/proc/self/exe", askMode)
	for i := range v.asked {
		command.Args = append(command.Args, simulated.FleetService(i).String())
	}
	command.Stderr = os.Stderr
	if err := mesh.Pod("client").Start(command); err != nil {
		return err
	}
	if err := command.Wait(); err != nil {
		return fmt.Errorf("ask for services: %w", err)
	}
	return nil
}

// askTime is many times what a question to the controller takes.
const askTime = time.Second

// ask connects to addresses. Whether anybody answers does not matter: the fleet
// is not there.
func ask(addresses []string) {
	for _, text := range addresses {
		address := netip.MustParseAddrPort(text)
		if conn, err := net.DialTimeout("tcp", address.String(), askTime); err == nil {
			conn.SetDeadline(time.Now().Add(askTime))
			conn.Read(make([]byte, 1))
			conn.Close()
		}
	}
}
