package watch

import (
	"context"
	"time"
)

const (
	// quiet is how long nothing may change before there is a call: changes come
	// in bursts, such as a pod's and its slice's.
	quiet = 10 * time.Millisecond
	// maxDelay is how long the first of many changes waits at most.
	maxDelay = 100 * time.Millisecond
)

// Trigger makes one call of many changes.
type Trigger struct {
	changed chan struct{} // capacity 1
}

// NewTrigger makes a trigger. Without a change it calls nobody.
func NewTrigger() *Trigger { return &Trigger{changed: make(chan struct{}, 1)} }

// Changed tells that there is something new. It never blocks.
func (t *Trigger) Changed() {
	select {
	case t.changed <- struct{}{}:
	default: // told already
	}
}

// Run calls f after changes until ctx ends: never twice at once, and always once
// after the last change.
func (t *Trigger) Run(ctx context.Context, f func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.changed:
		}
		if !t.settle(ctx) {
			return nil
		}
		f()
	}
}

// settle waits until nothing changes any more, or long enough. It returns false
// when ctx ended.
func (t *Trigger) settle(ctx context.Context) bool {
	deadline := time.NewTimer(maxDelay)
	defer deadline.Stop()
	silence := time.NewTimer(quiet)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-t.changed:
			silence.Reset(quiet)
		case <-silence.C:
			return true
		case <-deadline.C:
			return true
		}
	}
}
