package main

import (
	"strings"
	"testing"
	"time"
)

// clock is moved by hand.
type clock struct{ now time.Time }

func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func newTestProgress(terminal bool) (*progress, *clock, *strings.Builder) {
	var out strings.Builder
	c := &clock{now: time.Unix(0, 0)}
	return &progress{out: &out, terminal: terminal, now: func() time.Time { return c.now }, began: c.now}, c, &out
}

func TestPlainLinesAreRareAndTellTheTime(t *testing.T) {
	p, clock, out := newTestProgress(false)
	p.start("building")
	for second := range 40 {
		clock.advance(time.Second)
		p.update(string(rune('a'+second%26)) + " of z")
	}
	p.done("built")
	want := `[   0.0s] building
[  15.0s] building: o of z (15s)
[  30.0s] building: d of z (30s)
[  40.0s] built
`
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out, want)
	}
}

func TestTerminalDrawsOneLineAgain(t *testing.T) {
	p, clock, out := newTestProgress(true)
	p.start("building")
	clock.advance(2 * time.Second)
	p.tick()
	p.done("built")
	want := "\r\x1b[K[   0.0s] building (0s)\r\x1b[K[   2.0s] building (2s)\r\x1b[K[   2.0s] built\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestNothingIsShownBetweenSteps(t *testing.T) {
	p, clock, out := newTestProgress(false)
	p.start("one")
	p.done("one done")
	before := out.String()
	clock.advance(time.Hour)
	p.tick()
	if out.String() != before {
		t.Errorf("tick wrote %q", strings.TrimPrefix(out.String(), before))
	}
}

func TestBuildIsFollowedByItsPackages(t *testing.T) {
	p, clock, out := newTestProgress(false)
	p.start("building")
	clock.advance(plainInterval)
	complaints := followBuild(strings.NewReader("go: downloading example.com/a v1.0.0\nexample.com/a\nexample.com/b\n# example.com/b\nb.go:1:1: syntax error\n"), 7, p)
	if complaints != "# example.com/b\nb.go:1:1: syntax error\n" {
		t.Errorf("complaints %q", complaints)
	}
	if !strings.Contains(out.String(), "1 of 7 packages") {
		t.Errorf("shown %q", out)
	}
}
