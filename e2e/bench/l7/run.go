package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/variant"
	"github.com/ambit-mesh/ambit/e2e/bench/machine"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
	"github.com/ambit-mesh/ambit/e2e/bench/rounds"
	"github.com/ambit-mesh/ambit/internal/topology"
)

// nodes of the client, the proxy and the backends.
var nodes = []string{"client", "proxy", "backend"}

// run makes one benchmark and writes its results.
func run(ctx context.Context, s settings) error {
	outcome, err := benchmark(ctx, s)
	if outcome == nil {
		return err
	}
	return errors.Join(err, result.L7.Write(outcome, s.out), outcome.Failure())
}

// benchmark measures. The outcome is nil if not all was tried; if it is not, the
// error is that of cleaning up.
func benchmark(ctx context.Context, s settings) (_ *result.Run, err error) {
	files, err := process.RaiseFileLimit()
	if err != nil {
		return nil, err
	}
	wanted, err := chosen(s.variants)
	if err != nil {
		return nil, err
	}
	groups, err := rounds.Chosen(groups(s), s.metrics)
	if err != nil {
		return nil, err
	}
	outcome := &result.Run{Begun: time.Now(), Rounds: s.rounds, Window: s.window, Rate: s.rate}
	if outcome.Machine, err = machine.Describe(files); err != nil {
		return nil, err
	}
	lanes, cleanUp, err := prepare(ctx, wanted, outcome)
	defer func() { err = errors.Join(err, cleanUp()) }()
	if err != nil {
		return nil, err
	}
	if err := rounds.Measure(ctx, outcome, rounds.Schedule(s.rounds, groups, lanes)); err != nil {
		return nil, err
	}
	return outcome, nil
}

// prepare makes the network and starts all variants. Those that cannot be measured
// are noted, and have no lane.
func prepare(ctx context.Context, wanted []variant.Variant, outcome *result.Run) (lanes []*lane, cleanUp func() error, err error) {
	var undo []func() error
	cleanUp = func() error {
		var failed []error
		for i := len(undo) - 1; i >= 0; i-- {
			failed = append(failed, undo[i]())
		}
		return errors.Join(failed...)
	}
	// In memory: how fast a disk takes access logs is not what is measured.
	dir, err := os.MkdirTemp(topology.Scratch(), "bench-")
	if err != nil {
		return nil, cleanUp, err
	}
	undo = append(undo, func() error { return os.RemoveAll(dir) })
	certificates := filepath.Join(dir, "pki")
	if err := os.Mkdir(certificates, 0o755); err != nil {
		return nil, cleanUp, err
	}
	if _, err := pki.New(certificates); err != nil {
		return nil, cleanUp, err
	}
	network, err := topology.New(nodes...)
	if err != nil {
		return nil, cleanUp, err
	}
	undo = append(undo, network.Close)
	for _, v := range wanted {
		l, err := newLane(network, v, dir, certificates)
		if err != nil {
			return nil, cleanUp, err
		}
		undo = append(undo, l.Stop)
		ok, err := rounds.Start(ctx, outcome, l)
		if err != nil {
			return nil, cleanUp, err
		}
		if ok {
			lanes = append(lanes, l)
		}
	}
	if len(lanes) == 0 {
		return nil, cleanUp, fmt.Errorf("no variant can run here: %w", outcome.Failure())
	}
	return lanes, cleanUp, nil
}
