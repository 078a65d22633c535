// Command rotation changes what signs the mesh's certificates, and the root that all of
// them chain to, under load: what fails meanwhile is counted.
//
//	go run ./e2e/rotation -out docs/faults
//
// A pod on each of two nodes opens connections to the other at a steady rate, and
// uses one that stands. Then `ambit ca rotate --intermediate`, and `ambit ca rotate
// --root`: announced, acknowledged by all nodes, signing, all certificates replaced, and
// the former root gone from the mesh.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

const (
	namespace = "rotation"
	// before and after a rotation the load goes on for a while.
	before, after = 5 * time.Second, 10 * time.Second
	// patience for a rotation: a root waits for every node's certificates.
	patience = 5 * time.Minute
)

func main() {
	rate := flag.Int("rate", 200, "new connections a second, of all pods together")
	out := flag.String("out", ".tmp/faults", "folder of rotation.json")
	version := flag.String("version", "dev", "version of Ambit, for the page")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rate, *out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "rotation:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rate int, out, version string) (err error) {
	bed, err := testbed.Find()
	if err != nil {
		return err
	}
	if _, err := bed.Run(ctx, "ambit", "install"); err != nil {
		return err
	}
	addresses, err := bed.DeployPair(ctx, namespace, "one", "two")
	defer func() {
		_, gone := bed.Kubectl(context.WithoutCancel(ctx), "delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
		err = errors.Join(err, gone)
	}()
	if err != nil {
		return err
	}
	all := results{CPUs: runtime.NumCPU(), Version: version}
	for _, what := range []string{"intermediate", "root"} {
		row, err := rotate(ctx, bed, what, rate, addresses)
		if err != nil {
			return fmt.Errorf("rotate the %s: %w", what, err)
		}
		fmt.Printf("%+v\n", row)
		all.Rotations = append(all.Rotations, row)
	}
	all.Load = load()
	return all.write(out)
}

// rotate is one rotation under load.
func rotate(ctx context.Context, bed *testbed.Bed, what string, rate int, addresses map[string]string) (row rotation, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience+time.Minute)
	defer cancel()
	var clients []*client
	defer func() {
		for _, c := range clients {
			err = errors.Join(err, c.stop(&row))
		}
	}()
	for from, to := range map[string]string{"one": "two", "two": "one"} {
		c, err := startClient(ctx, bed, from, addresses[to]+":7001", rate/2)
		if err != nil {
			return row, err
		}
		clients = append(clients, c)
	}
	time.Sleep(before)
	was, err := readStatus(ctx, bed)
	if err != nil {
		return row, err
	}
	began := time.Now()
	if _, err := bed.Run(ctx, "ambit", "ca", "rotate", "--"+what); err != nil {
		return row, err
	}
	err = testbed.Eventually(ctx, patience, func(ctx context.Context) error {
		now, err := readStatus(ctx, bed)
		if err != nil {
			return err
		}
		return now.follows(was, what)
	})
	row.What, row.Seconds, row.Rate = what, time.Since(began).Round(100*time.Millisecond).Seconds(), rate
	if err != nil {
		return row, err
	}
	time.Sleep(after)
	return row, nil
}

// load is zero where the kernel does not tell it.
func load() (average float64) {
	if content, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(content), &average)
	}
	return average
}
