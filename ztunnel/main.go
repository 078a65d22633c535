// Command ztunnel is the tunnel of a node: it captures the node's pods of the
// mesh, and carries their connections between workload identities.
//
//	main.go       the subcommands
//	settings.go   the environment
//	run.go        the composition of everything, top-down
//	node.go       the node's redirection, opened as soon as the node allows it
//	dataplane.go  one captured pod: redirection, both proxies, certificate
//	report.go     what the controller is told, and its releases
//	roots.go      whom the controller's certificate must come from
//	clean.go      everything off a node again
//
// Invariants: the process stays up while the node lacks something, and says
// what; what protects pods is pinned and outlives it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/daemon"
)

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ztunnel:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	name := "run"
	if len(args) > 0 {
		name = args[0]
	}
	switch name {
	case "run", "ztunnel":
		return runZtunnel()
	case "clean-node":
		return cleanNode(os.Getenv, os.Stdout)
	case "wait":
		return wait()
	case "version":
		fmt.Println(daemon.Version)
		return nil
	}
	return fmt.Errorf("unknown command %q: none (to run), clean-node, wait or version", name)
}

func runZtunnel() error {
	settings, err := readSettings(os.Getenv)
	if err != nil {
		return err
	}
	logger, level, err := daemon.Logger(os.Stderr, os.Getenv)
	if err != nil {
		return err
	}
	running, force, stop := daemon.SignalContext(context.Background())
	defer stop()
	err = run(running, force, settings, logger, level)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// wait does nothing until it is told to end: a DaemonSet's pod that has done its
// work may not end by itself.
func wait() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	<-ctx.Done()
	return nil
}
