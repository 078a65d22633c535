package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// carryStream carries stream and socket to each other. This goroutine waits for
// the socket; what the stream receives, the tunnel's own goroutine writes to the
// socket, as far as that takes it.
func (s *session) carryStream(stream, socket *end, fromStream, fromSocket *atomic.Int64) {
	s.received.Add(1)
	s.mu.Lock()
	s.receiving = true
	if s.ended { // by ctx, already
		s.endReceivedLocked()
	}
	s.mu.Unlock()
	s.delivery = delivery{s: s, src: stream, dst: socket, moved: fromStream}
	stream.stream.Divert(&s.delivery)
	s.pump(socket, stream, fromSocket, s.sending)
	s.received.Wait()
}

// endReceivedLocked says that nothing more comes from the stream.
func (s *session) endReceivedLocked() {
	if s.receiving {
		s.receiving = false
		s.received.Done()
	}
}

// sending carries src, a socket, to dst, a stream. What is read is the frame that
// goes out: nothing is copied on the way to TLS.
func (s *session) sending(src, dst *end, moved *atomic.Int64) (blame *end, err error) {
	r := &s.frames
	poll := r.read
	for {
		if err := src.raw.Read(poll); errors.Is(err, os.ErrDeadlineExceeded) {
			src.resume() // an inspection
			continue
		} else if err != nil {
			return src, err
		}
		b := r.buffer
		r.buffer = nil
		if r.err != nil {
			b.Free()
			return src, os.NewSyscallError("read", r.err)
		}
		if b.Len() == 0 {
			b.Free()
			return src, src.ended()
		}
		n, err := dst.writeBuffer(b)
		s.count(moved, int64(n))
		if err != nil {
			return dst, err
		}
	}
}

// frameReader reads a non-blocking socket into frames, from within RawConn.Read.
type frameReader struct {
	bulk   bool // the last read filled its buffer, so that more is likely there
	buffer *hbone.Buffer
	err    error
}

// littleEnough, read into a large buffer, means that the bulk is over.
const littleEnough = 2 << 10

// read says false to be called again once the socket is readable: no buffer is
// held meanwhile.
func (r *frameReader) read(fd uintptr) bool {
	r.buffer = hbone.NewBuffer(r.bulk)
	space := r.buffer.Space()
	var n int
	n, r.err = readSocket(int(fd), space)
	if r.err == unix.EAGAIN {
		r.buffer.Free()
		return false
	}
	r.buffer.SetLen(n)
	switch {
	case n == len(space):
		r.bulk = true
	case n < littleEnough:
		r.bulk = false
	}
	return true
}

// delivery carries src, a stream, to dst, a socket: it is the stream's [hbone.Sink].
type delivery struct {
	// Fixed.
	s        *session
	src, dst *end
	moved    *atomic.Int64

	// Of one Take.
	p   []byte
	n   int
	err error
}

// Take writes as much as the socket takes now.
func (d *delivery) Take(p []byte) int {
	d.p, d.n, d.err = p, 0, nil
	if err := d.dst.raw.Write(d.write); err != nil {
		d.err = err
	}
	d.p = nil
	d.s.count(d.moved, int64(d.n))
	if d.err != nil {
		d.s.fail(d.dst.blame, os.NewSyscallError("write", d.err))
		return len(p)
	}
	return d.n
}

// write is called once, since it never says that it would rather wait.
func (d *delivery) write(fd uintptr) bool {
	for d.n < len(d.p) {
		n, err := unix.Write(int(fd), d.p[d.n:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return true
		case err != nil:
			d.err = err
			return true
		default:
			d.n += n
		}
	}
	return true
}

// Write writes what Take left.
func (d *delivery) Write(p net.Buffers) {
	n, err := p.WriteTo(d.dst.tcp)
	d.s.count(d.moved, n)
	if err != nil {
		d.s.fail(d.dst.blame, err)
	}
}

// End is told once.
func (d *delivery) End(err error) {
	blame := d.src
	if errors.Is(err, io.EOF) {
		blame, err = d.s.endHalf(d.src, d.dst)
	}
	if err != nil {
		d.s.fail(blame.blame, err)
		return
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.s.endReceivedLocked()
}
