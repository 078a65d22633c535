package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// plainInterval is how often a log without a terminal gets a line: often
// enough to see that it lives, rare enough to read.
const plainInterval = 15 * time.Second

// progress shows what is going on and for how long. On a terminal the current
// step is one line that is drawn again; elsewhere it is plain lines.
type progress struct {
	out      io.Writer
	terminal bool
	now      func() time.Time
	began    time.Time

	mu      sync.Mutex
	step    string
	detail  string
	stepped time.Time // when the step began
	printed time.Time // when the last plain line was written
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, now: time.Now, began: time.Now()}
	if file, ok := out.(*os.File); ok {
		if stat, err := file.Stat(); err == nil {
			p.terminal = stat.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
		}
	}
	return p
}

// start begins a step.
func (p *progress) start(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.detail = step, ""
	p.stepped = p.now()
	p.printed = p.stepped
	if p.terminal {
		p.drawLocked()
		return
	}
	fmt.Fprintf(p.out, "%s %s\n", stamp(p.now().Sub(p.began)), step)
}

// update says how far the step is.
func (p *progress) update(detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detail = detail
	p.showLocked()
}

// tick shows the elapsed time again, also when nothing is reported.
func (p *progress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.showLocked()
}

// done ends the step with what came of it.
func (p *progress) done(result string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintf(p.out, "%s %s\n", stamp(p.now().Sub(p.began)), result)
	p.step = ""
}

// watch ticks until the returned function is called.
func (p *progress) watch() (stop func()) {
	ended, finished := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(finished)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p.tick()
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended); <-finished }
}

func (p *progress) showLocked() {
	if p.step == "" {
		return
	}
	if p.terminal {
		p.drawLocked()
		return
	}
	if p.now().Sub(p.printed) < plainInterval {
		return
	}
	p.printed = p.now()
	fmt.Fprintf(p.out, "%s %s\n", stamp(p.now().Sub(p.began)), p.lineLocked())
}

func (p *progress) drawLocked() {
	fmt.Fprintf(p.out, "\r\x1b[K%s %s", stamp(p.now().Sub(p.began)), p.lineLocked())
}

func (p *progress) lineLocked() string {
	line := p.step
	if p.detail != "" {
		line += ": " + p.detail
	}
	return fmt.Sprintf("%s (%s)", line, p.now().Sub(p.stepped).Round(time.Second))
}

// stamp is the elapsed time in a fixed width, in seconds.
func stamp(elapsed time.Duration) string {
	return fmt.Sprintf("[%6.1fs]", elapsed.Seconds())
}
