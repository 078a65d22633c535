package relay

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// largeBuffer is several times an interactive message. A read that fills it
	// means bulk, which is spliced.
	largeBuffer = 64 << 10
	// spliceAtMost bounds one splice, so that a flow which turns interactive
	// goes back to plain reads.
	spliceAtMost = 1 << 30
)

type buffer = [largeBuffer]byte

// buffers is shared by all connections; a buffer is held only while it carries
// data.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// splicing carries src to dst, both sockets. The buffer is taken once data is
// there, and given back before the next wait. A read that fills it means bulk:
// the kernel then moves the bytes itself.
func (d *direction) splicing() (blame *end, err error) {
	r := socketReader{}
	r.poll = r.read
	for {
		if err := d.src.raw.Read(r.poll); errors.Is(err, os.ErrDeadlineExceeded) {
			if err := d.interrupted(); err != nil {
				return nil, err
			}
			continue
		} else if err != nil {
			return d.src, err
		}
		if r.err != nil {
			r.release()
			return d.src, os.NewSyscallError("read", r.err)
		}
		if r.n == 0 {
			r.release()
			return d.src, d.src.ended()
		}
		n, err := d.dst.conn.Write(r.buf[:r.n])
		bulk := r.n == largeBuffer
		r.release()
		d.count(int64(n))
		if err != nil {
			return d.dst, err
		}
		if bulk {
			if blame, err := d.splice(); err != nil {
				return blame, err
			}
		}
	}
}

// splice has the kernel move bytes from socket to socket until src's half ends,
// an end fails, or an inspection interrupts it. What has ended it without an
// error a plain read tells: splicing also stops at urgent data, for good.
func (d *direction) splice() (blame *end, err error) {
	d.src.splicing.Store(true)
	d.src.spliced.Store(true)
	d.session.inspectSoon()
	n, err := d.dst.tcp.ReadFrom(&io.LimitedReader{R: d.src.tcp, N: spliceAtMost})
	d.src.splicing.Store(false)
	d.count(n)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		d.src.resume()
		return nil, nil
	case err != nil && d.dst.gone():
		return d.dst, err
	}
	return d.src, err
}

// socketReader reads a non-blocking socket from within RawConn.Read.
type socketReader struct {
	poll func(fd uintptr) bool
	buf  *buffer
	n    int
	err  error
}

// read says false to be called again once the socket is readable.
func (r *socketReader) read(fd uintptr) bool {
	r.buf = buffers.Get().(*buffer)
	r.n, r.err = readSocket(int(fd), r.buf[:])
	if r.err == unix.EAGAIN {
		r.release()
		return false
	}
	return true
}

func (r *socketReader) release() {
	buffers.Put(r.buf)
	r.buf = nil
}

// readSocket is read(2) until it is not interrupted. At urgent data read(2) says
// that there is nothing if a signal is pending, and Go's scheduler sends signals
// all the time: then it is asked again, for nothing else would have it be asked.
func readSocket(fd int, p []byte) (int, error) {
	for again := 0; ; {
		n, err := unix.Read(fd, p)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && again < readsAtMark && atMark(fd):
			again++
		default:
			return max(n, 0), err
		}
	}
}

// readsAtMark is how often it is asked again: the urgent byte itself may still be
// on its way.
const readsAtMark = 10

// atMark tells whether urgent data is next.
func atMark(fd int) bool {
	next, err := unix.IoctlGetInt(fd, unix.SIOCATMARK)
	return err == nil && next != 0
}
