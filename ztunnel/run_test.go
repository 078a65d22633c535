package main

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatFailedIsTriedWhenTheControllerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var connected atomic.Bool
		var acts atomic.Int32
		go onConnect(ctx, connected.Load, func() { acts.Add(1) })
		for _, step := range []struct {
			connected bool
			acts      int32
		}{{false, 0}, {true, 1}, {true, 1}, {false, 1}, {true, 2}} {
			connected.Store(step.connected)
			time.Sleep(2 * connectPoll)
			if got := acts.Load(); got != step.acts {
				t.Fatalf("connected %v: %d times, want %d", step.connected, got, step.acts)
			}
		}
	})
}
