package hbone

import "sync"

const (
	// smallPayload is what an interactive message fits in.
	smallPayload = 4<<10 - frameHeader
	// mediumPayload is for writes of a record or two.
	mediumPayload = 2*recordSize - frameHeader
	// largePayload makes a frame exactly fill fifteen TLS records. Beyond that
	// throughput hardly grows, and others wait longer.
	largePayload = 15*recordSize - frameHeader
	// recordSize is the most that a TLS record carries (RFC 8446 section 5.1).
	recordSize = 16 << 10
)

// Buffer is memory for the payload of one DATA frame, with room for the frame's
// header before it: who reads into [Buffer.Space] and passes it on with
// [Stream.WriteBuffer] has copied nothing.
type Buffer struct {
	b    []byte // header and space
	n    int    // of the payload
	from *sync.Pool

	// While it is queued, guarded by the session's mu.
	st     *stream
	end    bool        // with END_STREAM
	reset  *ResetError // followed by RST_STREAM; nil if not
	urgent bool
}

var (
	smallBuffers  = newBuffers(smallPayload)
	mediumBuffers = newBuffers(mediumPayload)
	largeBuffers  = newBuffers(largePayload)
)

// newBuffers is shared by all tunnels: a buffer is held only while it carries data.
func newBuffers(payload int) *sync.Pool {
	p := &sync.Pool{}
	p.New = func() any { return &Buffer{b: make([]byte, frameHeader+payload), from: p} }
	return p
}

// NewBuffer takes a buffer from a pool; a large one if bulk.
func NewBuffer(bulk bool) *Buffer {
	if bulk {
		return largeBuffers.Get().(*Buffer)
	}
	return smallBuffers.Get().(*Buffer)
}

// bufferFor takes the smallest buffer that n bytes of payload fit in, or else a
// large one.
func bufferFor(n int) *Buffer {
	if n > smallPayload && n <= mediumPayload {
		return mediumBuffers.Get().(*Buffer)
	}
	return NewBuffer(n > smallPayload)
}

// Space is where the payload goes.
func (b *Buffer) Space() []byte { return b.b[frameHeader:] }

// SetLen says how many bytes of Space are payload.
func (b *Buffer) SetLen(n int) { b.n = n }

// Len is how many bytes of Space are payload.
func (b *Buffer) Len() int { return b.n }

// Free gives back a buffer that was not passed on.
func (b *Buffer) Free() {
	b.n, b.st, b.reset = 0, nil, nil
	b.from.Put(b)
}

// split leaves n bytes in b and returns a buffer with the rest; nil if there is none.
func (b *Buffer) split(n int) *Buffer {
	if n == b.n {
		return nil
	}
	rest := bufferFor(b.n - n)
	rest.n = copy(rest.Space(), b.b[frameHeader+n:frameHeader+b.n])
	b.n = n
	return rest
}

// payload is what was put into Space.
func (b *Buffer) payload() []byte { return b.b[frameHeader : frameHeader+b.n] }

// frame completes the frame and returns its bytes.
func (b *Buffer) frame(h header) []byte {
	h.length = b.n
	h.put(b.b)
	return b.b[:frameHeader+b.n]
}
