package relay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

var errGone = errors.New("peer is gone")

// tcpClose is TCP_CLOSE of the kernel's enum in net/tcp_states.h.
const tcpClose = 7

// end is one side of a connection.
type end struct {
	// Fixed after init. Either stream is set, or tcp and raw.
	conn   Conn
	stream hbone.Stream
	tcp    *net.TCPConn
	raw    syscall.RawConn
	blame  Reason

	finReceived, finSent, splicing atomic.Bool
	// spliced: since the last inspection.
	spliced atomic.Bool
	// writing is held by whoever writes to a stream.
	writing sync.Mutex
}

func (e *end) init(c Conn, blame Reason) {
	e.conn, e.blame = c, blame
	switch c := c.(type) {
	case *net.TCPConn:
		// SyscallConn fails only on a nil connection.
		if raw, err := c.SyscallConn(); err == nil {
			e.tcp, e.raw = c, raw
		}
	case hbone.Stream:
		e.stream = c
	default:
		panic(fmt.Sprintf("relay: neither a socket nor a stream: %T", c))
	}
}

// closeWrite ends our half. That an end which has sent all it had is gone
// before our FIN is not an error: nobody is left to miss it.
func (e *end) closeWrite() error {
	e.finSent.Store(true)
	if err := e.conn.CloseWrite(); err != nil && !e.finReceived.Load() {
		return err
	}
	return nil
}

// reset tells the peer that the connection failed: RST or RST_STREAM.
func (e *end) reset() {
	Reset(e.conn)
}

// Reset closes one end so that its peer sees a failure and not an end of data.
func Reset(c net.Conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		c.SetLinger(0) // Close then sends RST and drops what is queued
	case interface{ Reset() error }:
		c.Reset()
	}
	c.Close()
}

func (e *end) writeBuffer(b *hbone.Buffer) (int, error) {
	e.writing.Lock()
	defer e.writing.Unlock()
	return e.stream.WriteBuffer(b)
}

// gone says whether this end was given up though we have not ended our half: its
// peer reset it or stopped answering, or its tunnel died.
func (e *end) gone() bool {
	if e.finSent.Load() {
		return false
	}
	if e.stream == nil {
		return e.tcpState() == tcpClose
	}
	// A stream tells on writing nothing, and a write under way by itself.
	if !e.writing.TryLock() {
		return false
	}
	defer e.writing.Unlock()
	_, err := e.stream.Write(nil)
	return err != nil && !e.finSent.Load()
}

// over tells whether both halves of this end have ended in order.
func (e *end) over() bool { return e.finReceived.Load() && e.finSent.Load() }

// ended says what it means that a read of the socket found the end of the data.
// The kernel tells of a reset once: where a write was told, a read is not.
func (e *end) ended() error {
	if e.gone() {
		return os.NewSyscallError("read", unix.ECONNRESET)
	}
	return nil
}

// tcpState is the socket's, as far as it is there: we may have closed it.
func (e *end) tcpState() uint8 {
	state := uint8(tcpClose)
	e.raw.Control(func(fd uintptr) {
		if tcp, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			state = tcp.State
		}
	})
	return state
}

// interrupt makes a splice that reads from this end return and count. It also
// makes a read try again that waits although something is there: at urgent data,
// read(2) says that there is nothing if a signal is pending, and Go's scheduler
// sends signals all the time.
func (e *end) interrupt() {
	if e.stream == nil && (e.splicing.Load() || e.unread()) {
		e.wake()
	}
}

// wake makes whoever reads from this end, a socket, return.
func (e *end) wake() { e.tcp.SetReadDeadline(time.Unix(1, 0)) }

// unread tells whether the socket has bytes that were not read. Up to urgent data
// the kernel counts, and at urgent data it finds nothing to count.
func (e *end) unread() (unread bool) {
	e.raw.Control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		unread = err == nil && n > 0 || atMark(int(fd))
	})
	return unread
}

// resume lets reads block again after interrupt.
func (e *end) resume() {
	e.tcp.SetReadDeadline(time.Time{})
}
