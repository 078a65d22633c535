package http1

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// Reader reads a connection. Free gives its memory back.
type Reader struct {
	src    io.Reader
	buffer []byte
	r, w   int // what is buffered
	pooled *[bufferSize]byte
}

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// NewReader makes one of src.
func NewReader(src io.Reader) *Reader {
	pooled := buffers.Get().(*[bufferSize]byte)
	return &Reader{src: src, buffer: pooled[:], pooled: pooled}
}

// Free gives the Reader's memory back; what is buffered is lost.
func (r *Reader) Free() {
	if r.pooled != nil {
		buffers.Put(r.pooled)
		r.pooled, r.buffer, r.r, r.w = nil, nil, 0, 0
	}
}

// Buffered is what was read and not taken yet.
func (r *Reader) Buffered() int { return r.w - r.r }

// Wait returns once something is buffered.
func (r *Reader) Wait() error {
	for r.r == r.w {
		if err := r.fill(); err != nil {
			return err
		}
	}
	return nil
}

// HasHead tells whether Head has something to return without waiting.
func (r *Reader) HasHead() bool {
	return bytes.Contains(r.buffer[r.r:r.w], []byte("\r\n\r\n"))
}

// Head returns everything up to and including the first empty line. It is valid until
// the next call. io.EOF means that nothing came, io.ErrUnexpectedEOF that it ended
// within.
func (r *Reader) Head() ([]byte, error) {
	for looked := 0; ; {
		if i := bytes.Index(r.buffer[r.r+max(0, looked-3):r.w], []byte("\r\n\r\n")); i >= 0 {
			end := r.r + max(0, looked-3) + i + 4
			head := r.buffer[r.r:end]
			r.r = end
			return head, nil
		}
		looked = r.w - r.r
		if looked >= MaxHead {
			return nil, fmt.Errorf("head: %w", ErrTooLong)
		}
		if err := r.fill(); err != nil {
			if err == io.EOF && r.w > r.r {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// line returns a line without its CRLF, of at most limit bytes. It is valid until the
// next call.
func (r *Reader) line(limit int) ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buffer[r.r:r.w], '\n'); i >= 0 {
			line := r.buffer[r.r : r.r+i]
			r.r += i + 1
			if len(line) == 0 || line[len(line)-1] != '\r' {
				return nil, fmt.Errorf("line without CR: %w", ErrMalformed)
			}
			if len(line) > limit {
				return nil, fmt.Errorf("line: %w", ErrTooLong)
			}
			return line[:len(line)-1], nil
		}
		if r.w-r.r > limit {
			return nil, fmt.Errorf("line: %w", ErrTooLong)
		}
		if err := r.fill(); err != nil {
			return nil, unexpected(err)
		}
	}
}

// Read gives what is buffered, or else reads the connection.
func (r *Reader) Read(p []byte) (int, error) {
	if r.r < r.w {
		n := copy(p, r.buffer[r.r:r.w])
		r.r += n
		return n, nil
	}
	if len(p) >= bufferSize {
		return r.src.Read(p)
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.buffer[r.r:r.w])
	r.r += n
	return n, nil
}

// fill reads more into the buffer, which grows for heads alone.
func (r *Reader) fill() error {
	switch {
	case r.r == r.w:
		r.r, r.w = 0, 0
	case r.w == len(r.buffer) && r.r > 0:
		copy(r.buffer, r.buffer[r.r:r.w])
		r.r, r.w = 0, r.w-r.r
	}
	if r.w == len(r.buffer) {
		larger := make([]byte, 2*len(r.buffer))
		copy(larger, r.buffer[r.r:r.w])
		r.buffer, r.r, r.w = larger, 0, r.w-r.r
	}
	n, err := r.src.Read(r.buffer[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// unexpected is the end of a message that is not over.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
