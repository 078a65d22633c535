package hbone

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// wireRead is how much is read from the socket at once: thirty records.
	wireRead = 512 << 10
	// wireFlush is how much waits for one write: the records of a large frame.
	wireFlush = 16 * (recordSize + recordOverhead)
	// recordHead is the head of a TLS record (RFC 8446 section 5.1).
	recordHead = 5
	// recordOverhead is what TLS 1.3 adds to a record's payload at most, for
	// the cipher suites of crypto/tls.
	recordOverhead = recordHead + 1 + 16
	// maxRecord is the largest record that TLS 1.3 allows (RFC 8446 section 5.2).
	maxRecord = recordHead + recordSize + 256
)

// Wire is the TCP connection beneath the TLS of a tunnel:
//
//	wire := hbone.NewWire(tcp)
//	conn := tls.Client(wire, config)
//	client, err := hbone.NewClient(conn, options)
//
// It reads and, once there is a tunnel, writes many TLS records with one system
// call. TLS gets one whole record at a time, so that nothing above it waits with
// memory in its hands or with a record that nobody knows of; what waits here is
// no more than the part of a record that has come. A tunnel works without a
// Wire, slower.
type Wire struct {
	*net.TCPConn
	raw syscall.RawConn

	// Owned by the reading goroutine. in[r:w] is what TLS has not been given,
	// in[r:end] the record that it is being given. large is in, if it comes from
	// wireBuffers.
	in        []byte
	r, end, w int
	large     *[]byte
	noWait    bool // Read fails with errNoRecord rather than wait
	fill      func(fd uintptr) bool
	fillErr   error
	fillEOF   bool

	// Guarded by mu. out waits for Flush; if direct, nothing waits.
	mu     sync.Mutex
	out    []byte
	direct bool
	// flushing is held while out is written, so that records keep their order.
	flushing sync.Mutex
}

var wireBuffers = sync.Pool{New: func() any { b := make([]byte, wireRead); return &b }}

// outBuffers are for what waits to be written.
var outBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 2*wireFlush); return &b }}

// NewWire takes over tcp.
func NewWire(tcp *net.TCPConn) (*Wire, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &Wire{TCPConn: tcp, raw: raw, direct: true}
	w.fill = w.fillFrom
	return w, nil
}

// batch has writes wait for Flush from here on.
func (w *Wire) batch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.direct = false
}

// unbatch has further writes go out at once, after what waits.
func (w *Wire) unbatch() error {
	err := w.Flush()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.direct = true
	return err
}

// Write keeps records for Flush.
func (w *Wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.direct {
		w.mu.Unlock()
		return w.TCPConn.Write(p)
	}
	if w.out == nil {
		w.out = *outBuffers.Get().(*[]byte)
	}
	w.out = append(w.out, p...)
	w.mu.Unlock()
	return len(p), nil
}

// Flush writes what waits. It may be called at any time, by anyone.
func (w *Wire) Flush() error {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	w.mu.Lock()
	out := w.out
	w.out = nil
	w.mu.Unlock()
	if len(out) == 0 {
		return nil
	}
	_, err := w.TCPConn.Write(out)
	out = out[:0]
	outBuffers.Put(&out)
	return err
}

// unflushed is how much waits for Flush.
func (w *Wire) unflushed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.out)
}

// errNoRecord is why a Read that must not wait got nothing. TLS passes errors on
// that are temporary, and goes on where it was when it is asked again.
var errNoRecord net.Error = noRecord{}

type noRecord struct{}

func (noRecord) Error() string   { return "no TLS record is here yet" }
func (noRecord) Timeout() bool   { return true }
func (noRecord) Temporary() bool { return true }

// Read gives TLS the next record, or the rest of it.
func (w *Wire) Read(p []byte) (int, error) {
	if w.noWait && !w.ready() {
		return 0, errNoRecord
	}
	if err := w.await(); err != nil {
		return 0, err
	}
	n := copy(p, w.in[w.r:w.end])
	w.r += n
	if w.r == w.w {
		w.release()
	}
	return n, nil
}

// ready tells whether a whole record is here, so that TLS will not wait. What is
// no record is as good as one: TLS says what is wrong with it.
func (w *Wire) ready() bool {
	if w.r < w.end {
		return true
	}
	have := w.in[w.r:w.w]
	if len(have) < recordHead {
		return false
	}
	const changeCipherSpec, applicationData, major = 20, 23, 3
	length := recordHead + int(binary.BigEndian.Uint16(have[3:]))
	switch {
	case have[0] < changeCipherSpec, have[0] > applicationData, have[1] != major, length > maxRecord:
		length = len(have)
	case length > len(have):
		return false
	}
	w.end = w.r + length
	return true
}

// await blocks until a record is here.
func (w *Wire) await() error {
	for !w.ready() {
		if w.fillEOF {
			if w.w > w.r {
				return io.ErrUnexpectedEOF
			}
			return io.EOF
		}
		if err := w.raw.Read(w.fill); err != nil {
			return err
		}
		if w.fillErr != nil {
			return os.NewSyscallError("read", w.fillErr)
		}
	}
	return nil
}

// fillFrom reads what there is; false has it called again once there is something.
func (w *Wire) fillFrom(fd uintptr) bool {
	w.grow()
	n, err := readSocket(int(fd), w.in[w.w:])
	w.fillErr = nil
	switch {
	case err == unix.EAGAIN:
		w.shrink()
		return false
	case err != nil:
		w.fillErr = err
	case n == 0:
		w.fillEOF = true
	default:
		w.w += n
	}
	return true
}

// grow gives in the room of a large buffer, and moves what is in it to the front.
func (w *Wire) grow() {
	if w.large == nil {
		w.large = wireBuffers.Get().(*[]byte)
		w.w = copy(*w.large, w.in[w.r:w.w])
		w.in = *w.large
	} else {
		w.w = copy(w.in, w.in[w.r:w.w])
	}
	w.r, w.end = 0, 0
}

// shrink keeps no more than the part of a record that is in the large buffer.
func (w *Wire) shrink() {
	var rest []byte
	if w.r < w.w {
		rest = append(rest, w.in[w.r:w.w]...)
	}
	w.release()
	w.in, w.w = rest, len(rest)
}

func (w *Wire) release() {
	if w.large != nil {
		wireBuffers.Put(w.large)
	}
	w.large, w.in, w.r, w.end, w.w = nil, nil, 0, 0, 0
}

// readSocket is read(2) until it is not interrupted.
func readSocket(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// wireOf finds the Wire beneath conn; nil if there is none.
func wireOf(conn net.Conn) *Wire {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		w, _ := t.NetConn().(*Wire)
		return w
	}
	return nil
}

// tune makes the kernel keep little that is not under way yet: what waits here
// can still be overtaken by what is urgent.
func (w *Wire) tune() error {
	var result error
	err := w.raw.Control(func(fd uintptr) {
		result = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowWater)
	})
	return errors.Join(err, result)
}

// notSentLowWater is two flushes, so that the kernel never runs dry.
const notSentLowWater = 2 * wireFlush
