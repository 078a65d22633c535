// Package rounds measures variants in turns, so that what else the machine does weighs
// on all of them alike.
//
// In each round, and for each group of metrics, all lanes are measured one after the
// other, another one first each time. What is absent, does not start or fails is noted
// in the run, and the others' figures are taken all the same.
//
// What is measured, and how, is its callers' to say.
package rounds

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/ambit-mesh/ambit/e2e/bench/peer"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
)

// Lane is one variant, with all that it takes to measure it.
type Lane interface {
	Name() string
	// Start brings it up, and waits until it carries something. A *[peer.Absent] says
	// that this machine cannot run it.
	Start(context.Context) error
	// Stop ends it; it does nothing if it does not run.
	Stop() error
	Runs() bool
	// Version of what runs, for the report.
	Version() string
}

// Values are what one measurement gives.
type Values map[result.Metric]float64

// Group is metrics that are measured together.
type Group[L Lane] struct {
	Name    string
	Metrics []result.Metric
	// OnRequest: it takes too long to be measured unless it is named.
	OnRequest bool
	// Rounds are those in which it is measured, of all that there are.
	Rounds int
	// Takes, if set, tells whether a lane is measured.
	Takes   func(L) bool
	Measure func(context.Context, L) (Values, error)
}

// Chosen are the groups that hold any of these metrics, all but those on request if
// none are given.
func Chosen[L Lane](groups []Group[L], metrics []string) ([]Group[L], error) {
	if len(metrics) == 0 {
		return slices.DeleteFunc(slices.Clone(groups), func(g Group[L]) bool { return g.OnRequest }), nil
	}
	for _, name := range metrics {
		if !slices.ContainsFunc(groups, func(g Group[L]) bool { return slices.Contains(g.Metrics, result.Metric(name)) }) {
			return nil, fmt.Errorf("no such metric: %q", name)
		}
	}
	return slices.DeleteFunc(slices.Clone(groups), func(g Group[L]) bool {
		return !slices.ContainsFunc(g.Metrics, func(m result.Metric) bool { return slices.Contains(metrics, string(m)) })
	}), nil
}

// Start starts a lane, and notes it in the run; ok tells whether it can be measured.
// An error is the end of all.
func Start[L Lane](ctx context.Context, run *result.Run, l L) (ok bool, err error) {
	run.Variants = append(run.Variants, l.Name())
	err = l.Start(ctx)
	var absent *peer.Absent
	switch {
	case errors.As(err, &absent):
		fmt.Fprintf(os.Stderr, "%s absent: %s\n", l.Name(), absent.Why)
		run.Absent = append(run.Absent, result.Lack{Variant: l.Name(), Why: absent.Why})
		return false, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err != nil: // the others can still be measured
		fmt.Fprintln(os.Stderr, err)
		run.Failed = append(run.Failed, result.Lack{Variant: l.Name(), Metric: result.FailedStart, Why: err.Error()})
		return false, nil
	}
	run.Versions = append(run.Versions, result.Version{Variant: l.Name(), Version: l.Version()})
	return true, nil
}

// Turn is one measurement.
type Turn[L Lane] struct {
	Round int
	Group Group[L]
	Lane  L
}

// Schedule is the order of a whole run.
func Schedule[L Lane](rounds int, groups []Group[L], lanes []L) []Turn[L] {
	var turns []Turn[L]
	for round := range rounds {
		for i, g := range groups {
			if round >= g.Rounds {
				continue
			}
			for j := range lanes {
				lane := lanes[(j+round+i)%len(lanes)]
				if g.Takes == nil || g.Takes(lane) {
					turns = append(turns, Turn[L]{round, g, lane})
				}
			}
		}
	}
	return turns
}

// Measure takes all turns. An error is that of the context alone.
func Measure[L Lane](ctx context.Context, run *result.Run, turns []Turn[L]) error {
	for i, t := range turns {
		fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-24s %s\n", i+1, len(turns), t.Round+1, t.Group.Name, t.Lane.Name())
		if err := t.Take(ctx, run); err != nil {
			return err
		}
	}
	return nil
}

// Take makes one measurement. What fails is noted, and the variant stopped, to be
// started anew: the next measurement is not to suffer from it.
func (t Turn[L]) Take(ctx context.Context, run *result.Run) error {
	var measured Values
	var err error
	if !t.Lane.Runs() {
		err = t.Lane.Start(ctx)
	}
	if err == nil {
		measured, err = t.Group.Measure(ctx, t.Lane)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s, %s: failed: %v\n", t.Lane.Name(), t.Group.Name, err)
		run.Failed = append(run.Failed, result.Lack{Variant: t.Lane.Name(), Metric: t.Group.Name, Round: t.Round, Why: err.Error()})
		if err := t.Lane.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return nil
	}
	for metric, value := range measured {
		run.Samples = append(run.Samples, result.Sample{Variant: t.Lane.Name(), Metric: metric, Round: t.Round, Value: value})
	}
	return nil
}

// Pick returns those of these names, in their own order; all if none are given.
func Pick[T any](all []T, name func(T) string, names []string) ([]T, error) {
	if len(names) == 0 {
		return all, nil
	}
	for _, wanted := range names {
		if !slices.ContainsFunc(all, func(v T) bool { return name(v) == wanted }) {
			return nil, fmt.Errorf("no such variant: %q", wanted)
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return !slices.Contains(names, name(v)) }), nil
}
