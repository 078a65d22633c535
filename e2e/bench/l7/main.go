// Command l7 measures the waypoint against its peers: requests, CPU, latency, memory.
//
//	go run ./e2e/bench/l7 -out docs/benchmarks
//
//	main.go      flags; this program runs again, isolated, and in all its roles
//	run.go       the composition: network, lanes, rounds, files
//	lane.go      one variant between its client and the backends
//	measure.go   what is measured
//	variants.go  the variants
//
// Everything happens in network namespaces that end with the program: it needs
// root, and sends nothing to any network of the machine.
//
// What is asked of the proxies is package plan's, loads are package load's, variants
// package variant's, who comes when is package rounds', and what is made of the figures
// package result's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l7/variant"
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
	simulated.Isolation{Namespaces: unix.CLONE_NEWPID, Components: []string{"waypoint"}, Around: machine.AllowCongestion}.Enter()
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "l7:", err)
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
	metrics  []string // all if empty
	rounds   int
	// warm is how long a load runs before it counts, and window how long it counts.
	warm, window time.Duration
	// rate of the open loop.
	rate int
	// settle is how long a proxy rests before its memory is looked at, memoryRounds in
	// how many rounds that is: it hardly differs from round to round.
	settle       time.Duration
	memoryRounds int
}

// defaultRate is about half of what the slowest carries on two CPUs that the client and
// the backends share.
const defaultRate = 3000

func parse(args []string) (settings, error) {
	s := settings{rounds: 5, warm: time.Second, window: 4 * time.Second, rate: defaultRate, settle: 5 * time.Second, memoryRounds: 2}
	quick := settings{rounds: 1, warm: 300 * time.Millisecond, window: 700 * time.Millisecond, rate: defaultRate, settle: 500 * time.Millisecond, memoryRounds: 1}
	flags := flag.NewFlagSet("l7", flag.ContinueOnError)
	flags.StringVar(&s.out, "out", "docs/benchmarks", "folder for the results")
	variants := flags.String("variants", "", "comma-separated variants (default: all)")
	metrics := flags.String("metrics", "", "comma-separated metrics (default: all); what is measured together comes together")
	fast := flags.Bool("quick", false, "one short round: to see that it works, not to compare")
	rounds := flags.Int("rounds", 0, "number of rounds (default 5)")
	window := flags.Duration("window", 0, "length of one measurement (default 4s)")
	rate := flags.Int("rate", 0, fmt.Sprintf("requests a second where latencies are measured (default %d)", defaultRate))
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
	if *rate > 0 {
		s.rate = *rate
	}
	s.variants, s.metrics = list(*variants), list(*metrics)
	return s, nil
}

func list(words string) []string {
	return strings.FieldsFunc(words, func(r rune) bool { return r == ',' || r == ' ' })
}
