package fault

import (
	"context"
	"time"
)

// Fault is one way in which things go wrong.
type Fault struct {
	Name string
	// What breaks, and How it is made to; Open, if anything, is what stays open then.
	What, How, Open string
	// Leaks: what stays open is plaintext, also in strict mode.
	Leaks bool

	// Prepare, if any, is done before anything is measured, and Restore after.
	Prepare, Restore func(context.Context, *Lab) error
	// Inject puts the fault in force. Nil for those that are an attack alone.
	Inject func(context.Context, *Lab) error
	// Heal removes its cause. Nil if the cause goes by itself.
	Heal func(context.Context, *Lab) error
	// HealKilled instead, where the cause only goes by itself as long as ztunnel lives.
	HealKilled func(context.Context, *Lab) error
	// Attack, if any, is what applications do meanwhile; its name is one that they know.
	Attack []string
	// NewPods has pods created while the fault is in force.
	NewPods bool
	// Hold is how long it stays in force; [DefaultHold] if zero. Until, if any, is
	// when it ends, if ztunnel is not killed.
	Hold  time.Duration
	Until func(context.Context, *Lab) error
	// Quick ones take seconds, alone.
	Quick bool
	// Killed: with ztunnel killed on both nodes, as often as it starts, until the
	// cause is removed.
	Killed bool
}

// DefaultHold is time for some hundred attempts, and for a SYN to be repeated.
const DefaultHold = 3 * time.Second

// SelfHeals tells whether the cause goes by itself: recovery counts from the
// fault then.
func (f Fault) SelfHeals() bool { return f.Heal == nil && len(f.Attack) == 0 && !f.Killed }

// KilledSuffix marks the name of a fault that strikes with ztunnel killed.
const KilledSuffix = "+ztunnel-killed"

// killed is the fault with ztunnel killed.
func (f Fault) killed() Fault {
	f.Name += KilledSuffix
	f.What, f.How = "", ""
	f.Killed, f.Quick = true, false
	if f.HealKilled != nil {
		f.Heal = f.HealKilled
	}
	return f
}

// All are all faults, each followed by itself with ztunnel killed.
func All() []Fault {
	var all []Fault
	for _, f := range singles() {
		all = append(all, f, f.killed())
	}
	return append(all, doubles()...)
}

func singles() []Fault {
	var all []Fault
	for _, group := range [][]Fault{ofProcess(), ofCluster(), ofNode(), ofTime(), attacks(), late()} {
		all = append(all, group...)
	}
	return all
}
