package hbone

import (
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

// inbox is what a stream received and its reader has not read. The window that
// was given to the peer bounds it; small frames share a chunk.
type inbox struct {
	mu   sync.Mutex
	cond *sync.Cond

	// guarded by mu
	queue    []*chunk
	filling  bool  // the last chunk's free space is lent to the reading goroutine
	dropped  bool  // nobody will read what comes
	err      error // after the queue: io.EOF, or why there will be no more
	deadline deadline
}

func (in *inbox) init() {
	in.cond = sync.NewCond(&in.mu)
	in.deadline.wake = func() {
		in.mu.Lock()
		in.cond.Broadcast()
		in.mu.Unlock()
	}
}

// space lends free space to the reading goroutine, until filled.
func (in *inbox) space() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	if n := len(in.queue); n == 0 || in.queue[n-1].w == chunkSize {
		in.queue = append(in.queue, chunks.Get().(*chunk))
	}
	in.filling = true
	last := in.queue[len(in.queue)-1]
	return last.b[last.w:]
}

// filled takes back what space lent, with n bytes in it, and returns how many
// of them nobody will read.
func (in *inbox) filled(n int) (dropped int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.filling = false
	in.queue[len(in.queue)-1].w += n
	if in.dropped {
		return in.dropLocked()
	}
	in.freeReadLocked()
	in.cond.Signal()
	return 0
}

// finish sets what the reader gets after the queue; the first word counts.
func (in *inbox) finish(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
	in.cond.Broadcast()
}

// drop forgets what was received and makes reads fail with err. It returns how
// many bytes nobody will read.
func (in *inbox) drop(err error) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.dropped, in.err = true, err
	in.cond.Broadcast()
	in.deadline.stop()
	return in.dropLocked()
}

// dropLocked empties the queue, but for a chunk that is lent.
func (in *inbox) dropLocked() (n int) {
	keep := in.queue[len(in.queue):]
	for i, c := range in.queue {
		n += c.w - c.r
		c.r = c.w
		if in.filling && i == len(in.queue)-1 {
			keep = append(keep, c)
			continue
		}
		c.free()
	}
	in.queue = keep
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
			c := in.queue[0]
			k := copy(p[n:], c.b[c.r:c.w])
			c.r += k
			n += k
			if !in.freeReadLocked() && k == 0 {
				break
			}
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if in.err != nil {
			return 0, in.err
		}
		in.cond.Wait()
	}
}

// freeReadLocked frees the first chunk if all of it was read, and reports
// whether it did.
func (in *inbox) freeReadLocked() bool {
	if len(in.queue) == 0 {
		return false
	}
	c := in.queue[0]
	if c.r < c.w || len(in.queue) == 1 && in.filling {
		return false
	}
	in.queue[0] = nil
	in.queue = in.queue[1:]
	if len(in.queue) == 0 {
		in.queue = nil
	}
	c.free()
	return true
}

func (in *inbox) setDeadline(t time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.deadline.set(t)
	in.cond.Broadcast()
}

// deadline wakes waiters when a time has passed. Its owner's lock guards it.
type deadline struct {
	at    time.Time
	timer *time.Timer
	wake  func()
}

func (d *deadline) set(t time.Time) {
	d.stop()
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), d.wake)
	}
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
