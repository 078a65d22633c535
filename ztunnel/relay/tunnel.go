package relay

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// receive begins d, from a stream to a socket. What the stream receives, the
// tunnel's own goroutine writes to the socket, as far as that takes it.
func (s *session) receive(d *direction) {
	s.delivery.d = d
	s.mu.Lock()
	s.receiving = true
	ended := s.ended // by ctx, already
	s.mu.Unlock()
	if ended {
		s.endReceived()
	}
	d.src.stream.Divert(&s.delivery)
}

// endReceived says, once, that nothing more comes from the stream.
func (s *session) endReceived() {
	s.mu.Lock()
	was := s.receiving
	s.receiving = false
	s.mu.Unlock()
	if was {
		s.over()
	}
}

// sending carries src, a socket, to dst, a stream. What is read is the frame that
// goes out: nothing is copied on the way to TLS.
func (d *direction) sending() (blame *end, err error) {
	r := &d.session.frames
	poll := r.read
	for {
		if err := d.src.raw.Read(poll); errors.Is(err, os.ErrDeadlineExceeded) {
			if err := d.interrupted(); err != nil {
				return nil, err
			}
			continue
		} else if err != nil {
			return d.src, err
		}
		b := r.buffer
		r.buffer = nil
		if r.err != nil {
			b.Free()
			return d.src, os.NewSyscallError("read", r.err)
		}
		if b.Len() == 0 {
			b.Free()
			return d.src, d.src.ended()
		}
		n, err := d.dst.writeBuffer(b)
		d.count(int64(n))
		if err != nil {
			return d.dst, err
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

// delivery carries d, from a stream to a socket: it is the stream's [hbone.Sink].
type delivery struct {
	d *direction // fixed

	// Of one Take.
	p   []byte
	n   int
	err error
}

// Take writes as much as the socket takes now.
func (t *delivery) Take(p []byte) int {
	t.p, t.n, t.err = p, 0, nil
	if err := t.d.dst.raw.Write(t.write); err != nil {
		t.err = err
	}
	t.p = nil
	t.d.count(int64(t.n))
	if t.err != nil {
		t.d.session.fail(t.d.dst.blame, os.NewSyscallError("write", t.err))
		return len(p)
	}
	return t.n
}

// write is called once, since it never says that it would rather wait.
func (t *delivery) write(fd uintptr) bool {
	for t.n < len(t.p) {
		n, err := unix.Write(int(fd), t.p[t.n:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return true
		case err != nil:
			t.err = err
			return true
		default:
			t.n += n
		}
	}
	return true
}

// Write writes what Take left.
func (t *delivery) Write(p net.Buffers) {
	n, err := p.WriteTo(t.d.dst.tcp)
	t.d.count(n)
	if err != nil {
		t.d.session.fail(t.d.dst.blame, err)
	}
}

// End is told once.
func (t *delivery) End(err error) {
	s, blame := t.d.session, t.d.src
	if errors.Is(err, io.EOF) {
		blame, err = s.endHalf(t.d.src, t.d.dst)
	}
	if err != nil {
		s.fail(blame.blame, err)
		return
	}
	s.endReceived()
}
