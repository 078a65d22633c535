// Command l4 measures the data path of layer 4 against its peers: throughput,
// CPU, latency, new connections, idle memory.
//
//	go run ./e2e/bench/l4 -out docs/benchmarks
//
//	main.go      flags; this program runs again, isolated, and in all its roles
//	run.go       the composition: network, lanes, rounds, files
//	lane.go      one variant between its two pods, with client and server
//	measure.go   what is measured, one function for each group of metrics
//	variants.go  the variants
//
// Everything happens in network namespaces that end with the program: it needs
// root, and sends nothing to any network of the machine.
//
// Loads are package load's, variants package variant's, who comes when is package
// rounds', and what is made of the figures package result's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/variant"
	"github.com/ambit-mesh/ambit/e2e/bench/machine"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/simulated"
)

func main() {
	if role := process.Role(); role != "" {
		exit(runRole(role))
	}
	s, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		exit(err)
	}
	isolate()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, s))
}

// isolate returns only in the isolated process. In a namespace of their own,
// processes of peers end with this one as well.
func isolate() {
	simulated.Isolation{Namespaces: unix.CLONE_NEWPID, Around: machine.AllowCongestion}.Enter()
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "l4:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runRole is what children of this program do.
func runRole(role string) error {
	if _, err := process.RaiseFileLimit(); err != nil {
		return err
	}
	for _, run := range []func(string) (bool, error){load.Run, variant.Run} {
		if ok, err := run(role); ok {
			return err
		}
	}
	return fmt.Errorf("no such role: %q", role)
}

// settings of a run.
type settings struct {
	out      string
	variants []string // all if empty
	groups   []string // all if empty
	rounds   int
	// warm is how long a load runs before it counts, and window how long it counts.
	warm, window time.Duration
	// beside is the window beside bulk, where there are few round trips.
	beside time.Duration
	// adapt is how long Go's runtime may take to see that it has fewer CPUs.
	adapt time.Duration
	// idle is how many idle connections there shall be, and settle how long they
	// rest. idleRounds: memory hardly differs from round to round.
	idle       int
	settle     time.Duration
	idleRounds int
	// many is how many connections are made for what shows only after many.
	many int
	// slowRounds is in how many rounds there is what takes longer than others.
	slowRounds int
}

func parse(args []string) (settings, error) {
	s := settings{
		rounds: 5, many: 1_000_000, warm: 500 * time.Millisecond, window: 3 * time.Second,
		beside: 6 * time.Second, adapt: 1500 * time.Millisecond,
		idle: 10_000, settle: 20 * time.Second, idleRounds: 2, slowRounds: math.MaxInt,
	}
	quick := settings{
		rounds: 1, many: 10_000, warm: 200 * time.Millisecond, window: 500 * time.Millisecond,
		beside: 2 * time.Second, adapt: 1100 * time.Millisecond,
		idle: 1000, settle: 1500 * time.Millisecond, idleRounds: 1, slowRounds: 1,
	}
	flags := flag.NewFlagSet("l4", flag.ContinueOnError)
	flags.StringVar(&s.out, "out", "docs/benchmarks", "folder for the results")
	variants := flags.String("variants", "", "comma-separated variants (default: all)")
	groups := flags.String("metrics", "", "comma-separated metrics (default: all); what is measured together comes together")
	fast := flags.Bool("quick", false, "one short round: to see that it works, not to compare")
	rounds := flags.Int("rounds", 0, "number of rounds (default 5)")
	window := flags.Duration("window", 0, "length of one measurement (default 3s)")
	if err := flags.Parse(args); err != nil {
		return s, err // of which flags has already told
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *fast {
		quick.out = s.out
		s = quick
	}
	if *rounds > 0 {
		s.rounds = *rounds
	}
	if *window > 0 {
		s.window = *window
	}
	s.variants, s.groups = list(*variants), list(*groups)
	return s, nil
}

func list(words string) []string {
	return strings.FieldsFunc(words, func(r rune) bool { return r == ',' || r == ' ' })
}
