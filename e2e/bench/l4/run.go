package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/process"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/result"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/variant"
	"github.com/ambit-mesh/ambit/internal/topology"
)

// run makes one benchmark and writes its results.
func run(ctx context.Context, s settings) error {
	outcome, err := benchmark(ctx, s)
	if outcome == nil {
		return err
	}
	err = errors.Join(err, write(outcome, s.out))
	if n := len(outcome.Failed); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d failures: see %s", n, filepath.Join(s.out, reportFile)))
	}
	return err
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
	groups, err := chosenGroups(s.groups)
	if err != nil {
		return nil, err
	}
	outcome := &result.Run{Begun: time.Now(), Rounds: s.rounds, Window: s.window, Idle: min(s.idle, fitting(files, 0))}
	if outcome.Machine, err = describeMachine(files); err != nil {
		return nil, err
	}
	lanes, cleanUp, err := prepare(ctx, s, wanted, outcome)
	defer func() { err = errors.Join(err, cleanUp()) }()
	if err != nil {
		return nil, err
	}
	turns := schedule(s, groups, lanes)
	for i, t := range turns {
		fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-24s %s\n", i+1, len(turns), t.round+1, t.group.name, t.lane.variant.Name)
		if err := take(ctx, s, t, outcome); err != nil {
			return nil, err
		}
	}
	outcome.Samples = append(outcome.Samples, outcome.Samples.Scaling()...)
	return outcome, nil
}

// fitting is how many connections a proxy can have at once that may open so many
// files; each is how many a connection takes, 0 for two.
func fitting(files uint64, each int) int {
	const spare = 400 // libraries, listeners, workers
	const usual = 2
	return int(files-spare) / cmp.Or(each, usual)
}

// prepare makes the network and starts all variants. Those that are absent are
// noted, and have no lane.
func prepare(ctx context.Context, s settings, wanted []variant.Variant, outcome *result.Run) (lanes []*lane, cleanUp func() error, err error) {
	var undo []func() error
	cleanUp = func() error {
		var failed []error
		for i := len(undo) - 1; i >= 0; i-- {
			failed = append(failed, undo[i]())
		}
		return errors.Join(failed...)
	}
	dir, err := os.MkdirTemp("", "ambit-bench-")
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
	network, err := topology.New("a", "b")
	if err != nil {
		return nil, cleanUp, err
	}
	undo = append(undo, network.Close)
	for _, v := range wanted {
		idle := min(s.idle, fitting(outcome.Machine.Files, v.Files))
		l, err := newLane(network, v, dir, certificates, idle)
		if err != nil {
			return nil, cleanUp, err
		}
		undo = append(undo, l.stop)
		outcome.Variants = append(outcome.Variants, v.Name)
		err = l.start(ctx)
		var absent *variant.Absent
		switch {
		case errors.As(err, &absent):
			fmt.Fprintf(os.Stderr, "%s absent: %s\n", v.Name, absent.Why)
			outcome.Absent = append(outcome.Absent, result.Lack{Variant: v.Name, Why: absent.Why})
			continue
		case ctx.Err() != nil:
			return nil, cleanUp, ctx.Err()
		case err != nil: // the others can still be measured
			fmt.Fprintln(os.Stderr, err)
			outcome.Failed = append(outcome.Failed, result.Lack{Variant: v.Name, Metric: result.FailedStart, Why: err.Error()})
			continue
		}
		outcome.Versions = append(outcome.Versions, result.Version{Variant: v.Name, Version: l.path.Version()})
		lanes = append(lanes, l)
	}
	if len(lanes) == 0 {
		return nil, cleanUp, errors.New("no variant can run here")
	}
	return lanes, cleanUp, nil
}

// take makes one measurement. What fails is noted, and the variant started anew,
// so that the next measurement does not suffer from it.
func take(ctx context.Context, s settings, t turn, outcome *result.Run) error {
	var measured values
	var err error
	if t.lane.path == nil {
		err = t.lane.start(ctx)
	}
	if err == nil {
		measured, err = t.group.measure(ctx, s, t.lane)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s, %s: failed: %v\n", t.lane.variant.Name, t.group.name, err)
		outcome.Failed = append(outcome.Failed, result.Lack{Variant: t.lane.variant.Name, Metric: t.group.name, Round: t.round, Why: err.Error()})
		if err := t.lane.stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return nil
	}
	for metric, value := range measured {
		outcome.Samples = append(outcome.Samples, result.Sample{Variant: t.lane.variant.Name, Metric: metric, Round: t.round, Value: value})
	}
	return nil
}

// The files of a run.
const (
	summaryFile = "l4.json"
	samplesFile = "l4-samples.json"
	reportFile  = "l4.md"
)

func write(outcome *result.Run, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := outcome.Write(filepath.Join(dir, summaryFile), filepath.Join(dir, samplesFile)); err != nil {
		return err
	}
	charts, err := outcome.WriteCharts(dir)
	if err != nil {
		return err
	}
	report, err := os.Create(filepath.Join(dir, reportFile))
	if err != nil {
		return err
	}
	defer report.Close()
	if err := outcome.Report(report, charts); err != nil {
		return err
	}
	return report.Close()
}
