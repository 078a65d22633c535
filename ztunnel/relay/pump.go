package relay

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// smallBuffer is what an idle stream holds: an interactive message fits.
	smallBuffer = 2 << 10
	// largeBuffer is four TLS records: beyond it throughput hardly grows.
	largeBuffer = 64 << 10
	// spliceAtMost bounds one splice, so that a flow which turns interactive
	// goes back to plain reads.
	spliceAtMost = 1 << 30
)

type buffer = [largeBuffer]byte

// buffers is shared by all connections; a buffer is held only while it carries
// data.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// pump carries one direction until src's half ends, then ends dst's.
func (s *session) pump(src, dst *end, moved *atomic.Int64) {
	var blame *end
	var err error
	if src.tcp != nil {
		blame, err = s.pumpTCP(src, dst, moved)
	} else {
		blame, err = s.pumpStream(src, dst, moved)
	}
	if err == nil {
		src.finReceived.Store(true)
		blame, err = dst, dst.closeWrite()
	}
	if err != nil {
		s.fail(blame.blame, err)
	}
}

// pumpTCP reads from a socket. The buffer is taken once data is there, and given
// back before the next wait. A read that fills it means bulk: between two
// sockets the kernel then moves the bytes itself.
func (s *session) pumpTCP(src, dst *end, moved *atomic.Int64) (blame *end, err error) {
	r := socketReader{}
	r.poll = r.read
	for {
		if err := src.raw.Read(r.poll); errors.Is(err, os.ErrDeadlineExceeded) {
			src.resume() // an inspection that meant the splice just ended
			continue
		} else if err != nil {
			return src, err
		}
		if r.err != nil {
			r.release()
			return src, os.NewSyscallError("read", r.err)
		}
		if r.n == 0 {
			r.release()
			return nil, nil
		}
		n, err := dst.write(r.buf[:r.n])
		bulk := r.n == largeBuffer
		r.release()
		s.count(moved, int64(n))
		if err != nil {
			return dst, err
		}
		if bulk && dst.tcp != nil {
			if done, blame, err := s.splice(src, dst, moved); done {
				return blame, err
			}
		}
	}
}

// splice has the kernel move bytes from socket to socket until src's half ends
// (done, no error), an end fails, or an inspection interrupts it (not done).
func (s *session) splice(src, dst *end, moved *atomic.Int64) (done bool, blame *end, err error) {
	src.splicing.Store(true)
	n, err := dst.tcp.ReadFrom(&io.LimitedReader{R: src.tcp, N: spliceAtMost})
	src.splicing.Store(false)
	s.count(moved, n)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		src.resume()
		return false, nil, nil
	case err != nil && dst.gone():
		return true, dst, err
	case err != nil:
		return true, src, err
	}
	return n < spliceAtMost, nil, nil
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
	for {
		r.n, r.err = unix.Read(int(fd), r.buf[:])
		if r.err != unix.EINTR {
			break
		}
	}
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

// pumpStream reads from a stream, which blocks in Read: with a small buffer, and
// with a large one after reads that filled theirs, so that more is likely there.
func (s *session) pumpStream(src, dst *end, moved *atomic.Int64) (blame *end, err error) {
	small := make([]byte, smallBuffer)
	for full := false; ; {
		b := small
		var large *buffer
		if full {
			large = buffers.Get().(*buffer)
			b = large[:]
		}
		n, rerr := src.conn.Read(b)
		full = n == len(b)
		var written int
		if n > 0 {
			written, err = dst.write(b[:n])
		}
		if large != nil {
			buffers.Put(large)
		}
		s.count(moved, int64(written))
		switch {
		case err != nil:
			return dst, err
		case errors.Is(rerr, io.EOF):
			return nil, nil
		case rerr != nil:
			return src, rerr
		}
	}
}
