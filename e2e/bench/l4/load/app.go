package load

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// app is the server.
type app struct {
	received atomic.Int64 // bytes of bulk
	buffers  sync.Pool
}

func runApp(in io.Reader, out io.Writer) error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", AppPort))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer listener.Close()
	a := &app{buffers: sync.Pool{New: func() any { return new([bulkBuffer]byte) }}}
	go a.accept(listener)
	return process.Serve(in, out, func(q request) (reply, error) {
		if q.Op != opReceived {
			return reply{}, fmt.Errorf("no such request: %q", q.Op)
		}
		return reply{Count: a.received.Load()}, nil
	})
}

func (a *app) accept(listener net.Listener) {
	// pause after an error that another try will not cure, such as too many
	// open files.
	const pause = 10 * time.Millisecond
	for {
		conn, err := listener.Accept()
		if err != nil {
			time.Sleep(pause)
			continue
		}
		go a.serve(conn.(*net.TCPConn))
	}
}

// serve ends with the connection. Errors are the client's to notice: it counts.
func (a *app) serve(conn *net.TCPConn) {
	defer conn.Close()
	message := make([]byte, Message)
	n, err := conn.Read(message)
	if err != nil {
		return
	}
	switch message[0] {
	case modeSink:
		a.sink(conn, int64(n))
	case modeEcho:
		echo(conn, message, n)
	}
}

// sink says that it is there, takes all in, and tells at the end how much that was.
func (a *app) sink(conn *net.TCPConn, total int64) {
	if _, err := conn.Write([]byte{modeSink}); err != nil {
		return
	}
	a.received.Add(total)
	buffer := a.buffers.Get().(*[bulkBuffer]byte)
	defer a.buffers.Put(buffer)
	for {
		n, err := conn.Read(buffer[:])
		total += int64(n)
		a.received.Add(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
	}
	conn.Write(binary.BigEndian.AppendUint64(nil, uint64(total)))
}

// echo sends back what it gets, n bytes of which are in buffer already.
func echo(conn *net.TCPConn, buffer []byte, n int) {
	for {
		if _, err := conn.Write(buffer[:n]); err != nil {
			return
		}
		var err error
		if n, err = conn.Read(buffer); err != nil {
			return
		}
	}
}
