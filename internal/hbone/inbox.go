package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// chunk holds bytes received: those in [r:w] are to be read.
type chunk struct {
	r, w int
	b    [chunkSize]byte
}

// chunks are shared by all tunnels, so that an idle one holds none.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

func (c *chunk) free() {
	c.r, c.w = 0, 0
	chunks.Put(c)
}

// inbox is what a stream received and its reader, or its sink, has not taken. The
// window that was given to the peer bounds it; small frames share a chunk.
type inbox struct {
	// fixed: whose credit a sink's taking later gives back
	st *stream

	mu sync.Mutex

	// guarded by mu
	cond     *sync.Cond // for readers; nil until one waits
	queue    []*chunk
	dropped  bool  // nobody will read what comes
	err      error // after the queue: io.EOF, or why there will be no more
	deadline deadline

	// guarded by mu; without a sink there is a reader
	sink     Sink
	giving   bool // a goroutine, the reading one or that of drain, is in sink.Take
	draining bool // a goroutine gives the queue to the sink
	waiting  bool // and is in sink.Write
	told     bool // of the end
}

func (in *inbox) wake() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.wakeLocked()
}

func (in *inbox) wakeLocked() {
	if in.cond != nil {
		in.cond.Broadcast()
	}
}

func (in *inbox) waitLocked() {
	if in.cond == nil {
		in.cond = sync.NewCond(&in.mu)
	}
	in.cond.Wait()
}

// put takes what has come, and returns how many bytes of it need no more room: a
// sink has taken them, or nobody will. Only the reading goroutine calls it.
func (in *inbox) put(p []byte) (gone int) {
	in.mu.Lock()
	if in.sink != nil && !in.draining && !in.dropped && !in.told && len(in.queue) == 0 {
		in.giving = true
		in.mu.Unlock()
		gone = in.sink.Take(p)
		p = p[gone:]
		in.mu.Lock()
		in.giving = false
		if in.err != nil && !in.told { // it came meanwhile
			defer in.tell()
		}
	}
	defer in.mu.Unlock()
	switch {
	case len(p) == 0:
	case in.dropped, in.told:
		gone += len(p)
	default:
		in.addLocked(p)
		in.drainLocked()
		in.wakeLocked()
	}
	return gone
}

func (in *inbox) addLocked(p []byte) {
	for len(p) > 0 {
		if n := len(in.queue); n == 0 || in.queue[n-1].w == chunkSize {
			in.queue = append(in.queue, chunks.Get().(*chunk))
		}
		last := in.queue[len(in.queue)-1]
		n := copy(last.b[last.w:], p)
		last.w += n
		p = p[n:]
	}
}

// divert gives what has come, and what will, to a sink.
func (in *inbox) divert(sink Sink) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.sink = sink
	if len(in.queue) > 0 || in.err != nil {
		in.drainLocked()
	}
}

// drainLocked has a goroutine give the queue to the sink, if there is one.
func (in *inbox) drainLocked() {
	if in.sink != nil && !in.draining {
		in.draining = true
		go in.drain()
	}
}

// drain gives the sink what it takes at once, and has it wait for the rest. After a
// failure nothing is waited for.
func (in *inbox) drain() {
	for {
		in.mu.Lock()
		if len(in.queue) == 0 {
			in.draining = false
			in.mu.Unlock()
			in.tell()
			return
		}
		taken, told := in.queue, in.told
		in.queue, in.giving = nil, true
		in.mu.Unlock()
		var left net.Buffers
		n := 0
		for _, c := range taken {
			b := c.b[c.r:c.w]
			n += len(b)
			if !told && len(left) == 0 {
				b = b[in.sink.Take(b):]
			}
			if len(b) > 0 {
				left = append(left, b)
			}
		}
		in.mu.Lock()
		in.giving = false
		in.waiting = len(left) > 0 && !told && !in.failedLocked()
		waits := in.waiting
		in.mu.Unlock()
		if waits {
			in.sink.Write(left)
			in.mu.Lock()
			in.waiting = false
			in.mu.Unlock()
		}
		for _, c := range taken {
			c.free()
		}
		in.st.credit(n)
	}
}

// failedLocked tells of an end that is not one in order.
func (in *inbox) failedLocked() bool { return in.err != nil && !errors.Is(in.err, io.EOF) }

// tell tells the sink of the end, once, when it has come and nothing is left
// before it that it would take. No lock may be held.
func (in *inbox) tell() {
	in.mu.Lock()
	due := in.sink != nil && in.err != nil && !in.told && !in.giving
	if in.failedLocked() {
		due = due && (in.waiting || !in.draining || len(in.queue) == 0)
	} else {
		due = due && !in.draining && len(in.queue) == 0
	}
	if due {
		in.told = true
	}
	err := in.err
	in.mu.Unlock()
	if due {
		in.sink.End(err)
	}
}

// finish sets what the reader gets after the queue; the first word counts. A
// failure goes to a sink as soon as that has had what it takes without waiting; the
// end in order is the caller's to tell.
func (in *inbox) finish(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err != nil {
		return
	}
	in.err = err
	in.wakeLocked()
	if in.sink != nil && !errors.Is(err, io.EOF) {
		go in.tell()
	}
}

// drop forgets what was received and makes reads fail with err; a sink is told
// nothing more. It returns how many bytes nobody will read.
func (in *inbox) drop(err error) (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.dropped, in.err, in.told = true, err, true
	in.wakeLocked()
	in.deadline.stop()
	for _, c := range in.queue {
		n += c.w - c.r
		c.free()
	}
	in.queue = nil
	return n
}

// read waits for bytes, the end or the deadline.
func (in *inbox) read(p []byte) (n int, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		if in.deadline.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		for n < len(p) && len(in.queue) > 0 {
			n += in.copyLocked(p[n:])
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if in.err != nil {
			return 0, in.err
		}
		in.waitLocked()
	}
}

// copyLocked copies from the first chunk, and frees it once all of it was read.
func (in *inbox) copyLocked(p []byte) int {
	c := in.queue[0]
	n := copy(p, c.b[c.r:c.w])
	if c.r += n; c.r == c.w {
		in.queue[0] = nil
		if in.queue = in.queue[1:]; len(in.queue) == 0 {
			in.queue = nil
		}
		c.free()
	}
	return n
}

// pending tells whether read would return at once.
func (in *inbox) pending() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.queue) > 0 || in.err != nil
}

func (in *inbox) setDeadline(t time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.deadline.set(t, in.wake)
	in.wakeLocked()
}

// deadline wakes waiters when a time has passed. Its owner's lock guards it.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

// set has wake called at t, or, late, at what was set before: whoever wakes looks at
// the time. The timer is kept for the next time: servers set one with every request.
func (d *deadline) set(t time.Time, wake func()) {
	d.at = t
	switch {
	case t.IsZero():
		if d.timer != nil {
			d.timer.Stop()
		}
	case d.timer == nil:
		d.timer = time.AfterFunc(time.Until(t), wake)
	default:
		d.timer.Reset(time.Until(t))
	}
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
