package watch

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// calls runs a script of changes against a trigger, and returns when it called,
// in milliseconds from the start.
func calls(t *testing.T, script func(*Trigger)) (at []int64) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		trigger := NewTrigger()
		done := make(chan struct{})
		go func() {
			defer close(done)
			trigger.Run(ctx, func() { at = append(at, time.Since(start).Milliseconds()) })
		}()
		script(trigger)
		time.Sleep(time.Second)
		stop()
		<-done
	})
	return at
}

func TestTrigger(t *testing.T) {
	for _, test := range []struct {
		promise string
		script  func(*Trigger)
		want    []int64
	}{
		{"no change, no call", func(*Trigger) {}, nil},
		{"a change is waited on for 10 ms", func(tr *Trigger) { tr.Changed() }, []int64{10}},
		{"a burst makes one call", func(tr *Trigger) {
			for range 5 {
				tr.Changed()
				time.Sleep(5 * time.Millisecond)
			}
		}, []int64{30}},
		{"changes without end make a call every 100 ms", func(tr *Trigger) {
			for range 50 {
				tr.Changed()
				time.Sleep(5 * time.Millisecond)
			}
		}, []int64{100, 200, 255}},
		{"changes apart make a call each", func(tr *Trigger) {
			tr.Changed()
			time.Sleep(50 * time.Millisecond)
			tr.Changed()
		}, []int64{10, 60}},
	} {
		t.Run(test.promise, func(t *testing.T) {
			if got := calls(t, test.script); !slices.Equal(got, test.want) {
				t.Errorf("called after %v ms, want %v", got, test.want)
			}
		})
	}
}

// A change during a call is not lost: the call may have looked before it.
func TestTriggerCallsAgainForAChangeDuringACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		trigger, count := NewTrigger(), 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			trigger.Run(ctx, func() {
				if count++; count == 1 {
					time.Sleep(time.Second)
				}
			})
		}()
		trigger.Changed()
		time.Sleep(500 * time.Millisecond)
		trigger.Changed()
		time.Sleep(time.Second)
		stop()
		<-done
		if count != 2 {
			t.Errorf("%d calls", count)
		}
	})
}
