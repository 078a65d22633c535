package daemon

import (
	"io"
	"sync"
	"time"
)

const (
	// lineDelay is how long a line waits for others at most: nobody who reads along
	// notices.
	lineDelay = 100 * time.Millisecond
	// linesAtOnce is how much is written at once.
	linesAtOnce = 32 << 10
)

// Lines writes many lines at once: those of an access log, each of which would cost a
// system call. Who is killed loses those of the last lineDelay.
type Lines struct {
	w io.Writer

	mu sync.Mutex
	// Guarded by mu.
	buffer []byte
	timer  *time.Timer
	err    error // of what was written without anybody waiting
}

// NewLines makes one that writes to w; Flush ends it.
func NewLines(w io.Writer) *Lines {
	l := &Lines{w: w, buffer: make([]byte, 0, linesAtOnce+linesAtOnce/4)}
	l.timer = time.AfterFunc(time.Hour, func() { l.Flush() })
	l.timer.Stop()
	return l
}

// Write takes one line.
func (l *Lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buffer) == 0 {
		l.timer.Reset(lineDelay)
	}
	l.buffer = append(l.buffer, line...)
	if len(l.buffer) >= linesAtOnce {
		l.flushLocked()
	}
	return len(line), l.err
}

// Flush writes what waits.
func (l *Lines) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushLocked()
	return l.err
}

func (l *Lines) flushLocked() {
	l.timer.Stop()
	if len(l.buffer) > 0 {
		_, l.err = l.w.Write(l.buffer)
		l.buffer = l.buffer[:0]
	}
}
