package relay

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lot is where the directions of idle connections wait for their sockets: one
// epoll instance and one goroutine for all of them, in place of a goroutine, and
// its stack, for each.
//
// A socket that waits here is watched by the runtime's poller too; each of the two
// tells whoever asked it. A socket that is closed leaves by itself, so that what
// closes a parked one has to say that its direction is over: see [lot.leave].
type lot struct {
	// Fixed after newLot.
	epoll *os.File
	raw   syscall.RawConn
	ended chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	waiting map[space]*direction
	last    space
	kept    int // parked since memory was given back
	quiet   *time.Timer
}

// space names a parked direction; none is ever named twice, for an event may come
// late. Zero is none.
type space uint64

const (
	// Once that many connections have parked, and then none for a while, what they
	// occupied goes back to the system: where nothing moves, the runtime by itself
	// collects every two minutes, and gives back little at a time.
	manyParked = 1000
	quietTime  = 2 * time.Second
)

// eventBatch is how many events are taken from the kernel at once.
const eventBatch = 128

func newLot() (*lot, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance for idle connections: %w", err)
	}
	// Non-blocking, so that the runtime's poller watches it.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	l := &lot{epoll: os.NewFile(uintptr(fd), "idle connections"), ended: make(chan struct{}), waiting: map[space]*direction{}}
	l.quiet = time.AfterFunc(quietTime, l.giveBack)
	if l.raw, err = l.epoll.SyscallConn(); err != nil {
		return nil, errors.Join(err, l.epoll.Close())
	}
	go l.run()
	return l, nil
}

func (l *lot) close() error {
	l.quiet.Stop()
	err := l.epoll.Close()
	<-l.ended
	return err
}

// wanted tells whether d would be parked.
func (l *lot) wanted(d *direction) bool {
	if d.src.stream != nil || d.src.splicing.Load() || d.src.finReceived.Load() {
		return false
	}
	d.session.mu.Lock()
	defer d.session.mu.Unlock()
	return d.parked == 0
}

// park has d run again when there is something to be read from its socket, or
// that has failed. False: it is not parked, and goes on. True: it may run already.
func (l *lot) park(d *direction) bool {
	s := d.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	l.mu.Lock()
	l.last++
	name := l.last
	l.waiting[name] = d
	if l.kept++; l.kept >= manyParked {
		l.quiet.Reset(quietTime)
	}
	l.mu.Unlock()
	d.parked = name
	if err := l.watch(d.src, name); err != nil {
		d.parked = 0
		l.forget(name)
		return false
	}
	return true
}

// watch has the kernel tell of the socket, once.
func (l *lot) watch(src *end, name space) (err error) {
	event := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLONESHOT,
		Fd:     int32(uint32(name)), Pad: int32(uint32(name >> 32)),
	}
	control := l.raw.Control(func(epoll uintptr) {
		err = src.raw.Control(func(fd uintptr) {
			err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, int(fd), &event)
			if err == unix.EEXIST { // from the last time
				err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, int(fd), &event)
			}
		})
	})
	return errors.Join(control, err)
}

// leave tells whether d was parked. From then on it is its caller's to say that it
// is over.
func (l *lot) leave(d *direction) bool {
	d.session.mu.Lock()
	name := d.parked
	d.parked = 0
	d.session.mu.Unlock()
	if name == 0 {
		return false
	}
	l.forget(name)
	return true
}

// giveBack runs when none has parked for quietTime.
func (l *lot) giveBack() {
	l.mu.Lock()
	many := l.kept >= manyParked
	if many {
		l.kept = 0
	}
	l.mu.Unlock()
	if many {
		debug.FreeOSMemory()
	}
}

func (l *lot) forget(name space) *direction {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.waiting[name]
	delete(l.waiting, name)
	return d
}

// run wakes those whose sockets have something to say, until the lot is closed.
func (l *lot) run() {
	defer close(l.ended)
	events := make([]unix.EpollEvent, eventBatch)
	for {
		var n int
		err := l.raw.Read(func(epoll uintptr) bool {
			err := error(unix.EINTR)
			for err == unix.EINTR {
				n, err = unix.EpollWait(int(epoll), events, 0)
			}
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, event := range events[:n] {
			name := space(uint32(event.Fd)) | space(uint32(event.Pad))<<32
			if d := l.forget(name); d != nil && d.unpark(name) {
				go d.run()
			}
		}
	}
}

// unpark tells whether d was parked under that name.
func (d *direction) unpark(name space) bool {
	d.session.mu.Lock()
	defer d.session.mu.Unlock()
	if d.parked != name {
		return false
	}
	d.parked = 0
	return true
}
