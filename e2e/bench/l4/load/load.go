// Package load is the client and the server of the benchmark, as processes.
//
//	app.go        the server: takes in bulk, echoes the rest
//	generator.go  the client: one load at a time, between a start and a stop
//	bulk.go, ping.go, churn.go, idle.go: the loads
//	remote.go     both of them as the process that measures sees them
//
// The two are told what to do in lines of JSON on their standard input, so that
// the process that measures decides when a window begins and ends, and reads
// the counters and the proxies' CPU time at the same moments.
//
// Invariants: a load that loses a byte, a connection or an answer fails as a
// whole, and with it the measurement; when a load has stopped, its connections
// are closed.
package load

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Roles of the processes.
const (
	AppRole       = "app"
	GeneratorRole = "generator"
)

// AppPort is where the server listens, in its own pod.
const AppPort = 8080

// The first byte of a connection says what the server shall do with it.
const (
	modeEcho = 'E'
	modeSink = 'S'
)

const (
	// bulkBuffer is what is read and written at once: large, so that the two
	// ends cost little next to the proxies.
	bulkBuffer = 256 << 10
	// Message is the size of what is pinged and echoed.
	Message = 1 << 10
	// dialTimeout covers the whole way to the first answer.
	dialTimeout = 10 * time.Second
	// stopTimeout is how long what was sent may take to arrive.
	stopTimeout = 30 * time.Second
)

// Kind of a load.
type Kind string

const (
	Bulk  Kind = "bulk"  // N streams that send as fast as they can
	Ping  Kind = "ping"  // N connections that send a message and wait for it
	Churn Kind = "churn" // N workers: connect, a message and back, close
	Idle  Kind = "idle"  // N connections that have sent a message and are kept
)

type operation string

const (
	opStart    operation = "start"
	opMark     operation = "mark"
	opStop     operation = "stop"
	opReceived operation = "received"
)

type request struct {
	Op   operation      `json:"op"`
	Kind Kind           `json:"kind,omitempty"`
	To   netip.AddrPort `json:"to,omitzero"`
	N    int            `json:"n,omitempty"`
}

type reply struct {
	// Count is of bytes, or of operations.
	Count     int64 `json:"count,omitempty"`
	Latencies `json:"latencies,omitzero"`
}

// Latencies of a load's operations between its first mark and its stop.
type Latencies struct {
	P50, P99, P999 time.Duration
	Samples        int
}

// Run is the main of the two roles; ok is false for another one.
func Run(role string) (ok bool, err error) {
	switch role {
	case AppRole:
		return true, runApp(os.Stdin, os.Stdout)
	case GeneratorRole:
		return true, runGenerator(os.Stdin, os.Stdout)
	}
	return false, nil
}

// dial connects as an application does.
func dial(to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", to.String(), dialTimeout)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// fault keeps the first error of many goroutines.
type fault struct {
	once sync.Once
	// broken is closed once there is an error.
	broken chan struct{}
	err    error
}

func newFault() *fault { return &fault{broken: make(chan struct{})} }

func (f *fault) set(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.broken)
	})
}

// get returns the error, if any yet.
func (f *fault) get() error {
	select {
	case <-f.broken:
		return f.err
	default:
		return nil
	}
}
