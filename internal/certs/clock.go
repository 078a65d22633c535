package certs

import (
	"context"
	"time"
)

const (
	// clockPoll is how soon it is noticed that the clock was set, or stood still:
	// timers go by another one, which does not show that.
	clockPoll = 2 * time.Second
	// clockStep is what counts as that; less is NTP's daily work.
	clockStep = 10 * time.Second
)

// now is what the clock shows, and nothing of how long the process runs: two of
// them differ by what lies between them on the clock.
func (s *Store) now() time.Time { return s.config.Now().Round(0) }

// watchClock has certificates and trust looked at again whenever the clock was set.
func (s *Store) watchClock(ctx context.Context) {
	ticker := time.NewTicker(clockPoll)
	defer ticker.Stop()
	began, shown := time.Now(), s.now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		step := s.now().Sub(shown) - time.Since(began)
		if step.Abs() < clockStep {
			continue
		}
		began, shown = time.Now(), s.now()
		s.config.Logger.Warn("clock was set", "by", step.Round(time.Millisecond).String())
		s.clockWasSet()
	}
}

// clockWasSet has whoever holds a certificate, or trusts one, look at its end again.
func (s *Store) clockWasSet() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trustHasChangedLocked()
	for _, e := range s.entries {
		e.hurry()
	}
}
