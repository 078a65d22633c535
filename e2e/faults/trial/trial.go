// Package trial measures what a fault does to applications of the mesh.
//
//	bench.go     the namespaces, their pods, the taps
//	cast.go      who is where: pods and addresses, polled from the API server
//	orders.go    what each pod shall do
//	tale.go      what pods told, and what it says (pure)
//	trial.go     one fault: baseline, inject, hold, heal, recover, count
//
// Invariants: a row is written only of a trial that began with every connection
// answered; the control runs in the same capture; a tap that missed a packet
// fails the trial.
package trial

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/e2e/faults/fault"
	"github.com/ambit-mesh/ambit/e2e/faults/result"
)

const (
	// patience is for a baseline and for a recovery: longer than a node's boot, and
	// than the kubelet's pauses after failures.
	patience = 60 * time.Second
	// streak is how many answers in a row are a recovery.
	streak = 4
	// afterwards is captured too: what was on its way, and what came late.
	afterwards = 500 * time.Millisecond
	poll       = 100 * time.Millisecond
)

// Run puts a fault in force and measures. The error is of the trial itself; what
// the fault did is in the rows.
func (b *Bench) Run(ctx context.Context, f fault.Fault) (rows []result.Row, err error) {
	defer func() {
		whole := len(rows) > 0
		for _, row := range rows {
			whole = whole && row.RecoveryMS >= 0
		}
		if after := b.restore(context.WithoutCancel(ctx), f, whole); after != nil {
			err = errors.Join(err, fmt.Errorf("restore after %s: %w", f.Name, after))
		}
	}()
	if f.Prepare != nil {
		if err := f.Prepare(ctx, b.lab); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", f.Name, err)
		}
	}
	if err := b.baseline(ctx); err != nil {
		return nil, fmt.Errorf("before %s: %w", f.Name, err)
	}
	kept := b.tales.kept()

	began := time.Now()
	if err := b.inject(ctx, f); err != nil {
		return nil, fmt.Errorf("inject %s: %w", f.Name, err)
	}
	if err := b.hold(ctx, f, began); err != nil {
		return nil, err
	}
	from := began
	ended := time.Now()
	if !f.SelfHeals() {
		if err := b.heal(ctx, f); err != nil {
			return nil, fmt.Errorf("heal %s: %w", f.Name, err)
		}
		from = ended
	}
	recovered := b.recover(ctx, from)
	if f.SelfHeals() {
		ended = time.Now()
	}
	if err := b.sleep(ctx, afterwards); err != nil {
		return nil, err
	}
	packets, err := b.taps.Take()
	if err != nil {
		return nil, fmt.Errorf("capture of %s: %w", f.Name, err)
	}
	window := span{began, ended}
	control := b.who(Control).Judge(packets)
	for _, mode := range b.modes {
		row := result.Row{Fault: f.Name, Mode: mode, ControlPlaintextPackets: control.Plaintext, SelfHealed: f.SelfHeals(), KnownOpen: f.Leaks}
		verdict := b.who(mode).Judge(packets)
		row.CapturedPackets, row.PlaintextPackets = verdict.Captured, verdict.Plaintext
		for _, packet := range verdict.Examples {
			row.Evidence = append(row.Evidence, packet.String())
		}
		b.tales.count(&row, b.cast.names(mode), kept, window)
		row.RecoveryMS = recovered[mode].Milliseconds()
		if recovered[mode] < 0 {
			row.RecoveryMS = -1
			row.Evidence = append(row.Evidence, b.tales.unanswered(b.pairs(mode))...)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// hold returns when the fault has been in force for long enough.
func (b *Bench) hold(ctx context.Context, f fault.Fault, began time.Time) error {
	if f.Until != nil && !f.Killed {
		return f.Until(ctx, b.lab)
	}
	hold := f.Hold
	if hold == 0 {
		hold = fault.DefaultHold
	}
	return b.sleep(ctx, max(0, hold-time.Since(began)))
}

// baseline waits until every pod answers every other, and begins to count.
func (b *Bench) baseline(ctx context.Context) error {
	since := time.Now()
	b.tales.forget(since.Add(-patience))
	deadline := since.Add(patience)
	for {
		all := append([]string{Control}, b.modes...)
		missing := b.tales.missing(b.pairs(all...), since)
		if len(missing) == 0 && b.complete(all...) {
			b.cast.forget()
			_, err := b.taps.Take()
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not every pod is there and answers: %v", b.tales.unanswered(missing))
		}
		if err := b.sleep(ctx, poll); err != nil {
			return err
		}
	}
}

func (b *Bench) inject(ctx context.Context, f fault.Fault) error {
	if len(f.Attack) > 0 {
		if err := b.orderAttack(f.Attack); err != nil {
			return err
		}
	}
	if f.Inject != nil {
		if err := f.Inject(ctx, b.lab); err != nil {
			return err
		}
	}
	if f.Killed {
		for _, node := range []string{fault.Node, fault.Other} {
			if err := b.lab.KeepDead(node); err != nil {
				return err
			}
		}
	}
	if f.NewPods {
		return b.addPods(ctx)
	}
	return nil
}

func (b *Bench) heal(ctx context.Context, f fault.Fault) error {
	if err := b.orderAttack(nil); err != nil {
		return err
	}
	if f.Heal != nil {
		if err := f.Heal(ctx, b.lab); err != nil {
			return err
		}
	}
	return b.lab.Revive(ctx)
}

// recover returns how long after since every pod of each mode answered every
// other again, and goes on to; -1 where that does not come.
func (b *Bench) recover(ctx context.Context, since time.Time) map[string]time.Duration {
	took := map[string]time.Duration{}
	for deadline := time.Now().Add(patience); len(took) < len(b.modes) && time.Now().Before(deadline) && ctx.Err() == nil; {
		for _, mode := range b.modes {
			if _, done := took[mode]; done {
				continue
			}
			pairs := b.pairs(mode)
			if b.complete(mode) && len(b.tales.missing(pairs, since)) == 0 {
				took[mode] = b.tales.recovered(pairs, since)
			}
		}
		b.sleep(ctx, poll)
	}
	for _, mode := range b.modes {
		if _, done := took[mode]; !done {
			took[mode] = -1
		}
	}
	return took
}

// restore takes everything back, whatever happened. Applications that did not
// recover are replaced, so that the next fault does not inherit this one.
func (b *Bench) restore(ctx context.Context, f fault.Fault, recovered bool) error {
	errs := []error{b.orderAttack(nil)}
	if f.Restore != nil {
		errs = append(errs, f.Restore(ctx, b.lab))
	}
	errs = append(errs, b.lab.Revive(ctx))
	errs = append(errs, b.removePods(ctx), b.lab.Settle(ctx), b.lab.Forgive(ctx))
	if !recovered {
		errs = append(errs, b.replace(ctx))
	}
	return errors.Join(errs...)
}

func (b *Bench) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
