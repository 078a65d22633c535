// Command waypoint stands before services that want requests routed and judged: it
// ends the tunnels of their clients, and opens its own to their endpoints.
//
//	main.go      the subcommands
//	settings.go  the environment
//	run.go       the composition of everything, top-down
//	roots.go     whom the controller's and the peers' certificates must come from
//	dump.go      what the administrator sees
//
// Invariants: it is an ordinary pod without privileges, whose one identity is its own;
// what it has no binding for, and what a binding names and has not come, is refused.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ambit-mesh/ambit/internal/daemon"
)

// heapFloor is a quarter of the memory that the waypoint's Deployment asks for.
const heapFloor = 16 << 20

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "waypoint:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	name := "run"
	if len(args) > 0 {
		name = args[0]
	}
	switch name {
	case "run":
		return runWaypoint()
	case "version":
		fmt.Println(daemon.Version)
		return nil
	}
	return fmt.Errorf("unknown command %q: none (to run), or version", name)
}

func runWaypoint() error {
	s, err := readSettings(os.Getenv)
	if err != nil {
		return err
	}
	logger, level, err := daemon.Logger(os.Stderr, os.Getenv)
	if err != nil {
		return err
	}
	defer daemon.HeapFloor(heapFloor)()
	lines := daemon.NewLines(os.Stderr)
	defer lines.Flush()
	access, err := daemon.LoggerAt(level, lines, os.Getenv)
	if err != nil {
		return err
	}
	running, force, stop := daemon.SignalContext(context.Background())
	defer stop()
	if err := run(running, force, s, logger, access, level); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
