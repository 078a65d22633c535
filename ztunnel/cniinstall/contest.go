package cniinstall

import "time"

const (
	// contestWindow is how long a restoration counts.
	contestWindow = 10 * time.Second
	// contestFree of them in a window are made at once: a network plugin that
	// starts writes its configuration more than once.
	contestFree = 5
	// Further ones wait, ever longer, never so long that the entry is missing for
	// a second.
	contestFirst, contestLast = 20 * time.Millisecond, 500 * time.Millisecond
)

// contest is about one file that somebody else may keep writing: it says how
// long the next restoration waits, so that two who disagree do not write as fast
// as the disk lets them.
type contest struct {
	restored []time.Time // within the window, oldest first
}

// wait returns how long a restoration has to wait from now.
func (c *contest) wait(now time.Time) time.Duration {
	c.forget(now)
	over := len(c.restored) - contestFree
	if over < 0 {
		return 0
	}
	pause := min(contestFirst<<min(over, 10), contestLast)
	return max(0, c.restored[len(c.restored)-1].Add(pause).Sub(now))
}

// note counts a restoration.
func (c *contest) note(now time.Time) {
	c.forget(now)
	c.restored = append(c.restored, now)
}

// contested tells how often the file was restored in the window, if that is
// more often than one who does it once or twice explains.
func (c *contest) contested(now time.Time) (times int, yes bool) {
	c.forget(now)
	return len(c.restored), len(c.restored) >= contestFree
}

func (c *contest) forget(now time.Time) {
	for len(c.restored) > 0 && now.Sub(c.restored[0]) >= contestWindow {
		c.restored = c.restored[1:]
	}
}
