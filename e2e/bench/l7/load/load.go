// Package load is the clients and the backends of the benchmark, as processes.
//
//	backend.go    the backends, in plaintext, with TLS, and behind a tunnel
//	carrier.go    how clients' connections get to the proxy
//	client.go     one connection: a request, its response
//	closed.go     the next request when the last one was answered
//	open.go       requests when they are due, whatever became of the last ones
//	generator.go  one load at a time, between a start and a stop
//	remote.go     both processes as the one that measures sees them
//
// Invariants: a load that gets another response than the one that it wants, from
// another backend than one of those that it may be from, or none at all, fails as a
// whole, and with it the measurement; a latency begins when its request was due, also
// if it could not be sent then.
package load

import (
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
)

// Roles of the processes.
const (
	BackendRole   = "backend"
	GeneratorRole = "generator"
)

const (
	// dialTimeout covers the whole way to the first answer.
	dialTimeout = 10 * time.Second
	// stopTimeout is how long what was sent may take to be answered.
	stopTimeout = 10 * time.Second
)

// Carrier is what a client's connection is made of.
type Carrier string

const (
	Plain Carrier = "plain"
	// TLS is one connection with mutual TLS each.
	TLS Carrier = "tls"
	// Tunnel is a stream in tunnels that all share, as ztunnel makes them.
	Tunnel Carrier = "tunnel"
)

// Target is where requests go.
type Target struct {
	Carrier Carrier        `json:"carrier"`
	Address netip.AddrPort `json:"address"`
	// Authority is what is asked for in a tunnel.
	Authority netip.AddrPort `json:"authority,omitzero"`
	// Identity is whom the tunnel must lead to: spiffe://...
	Identity string `json:"identity,omitempty"`
	// Direct: there is no proxy, and the first backend answers everything.
	Direct bool `json:"direct,omitempty"`
	// PKI is the folder of certificates.
	PKI string `json:"pki,omitempty"`
}

// requests that are made of the target.
func (t Target) requests() []plan.Request {
	all := plan.Requests()
	if t.Direct {
		for i := range all {
			all[i].Backends = plan.Backends[0]
		}
	}
	return all
}

type operation string

const (
	opStart operation = "start"
	opMark  operation = "mark"
	opStop  operation = "stop"
	opAsk   operation = "ask"
)

type request struct {
	Op operation `json:"op"`
	To Target    `json:"to,omitzero"`
	// Connections that are used, and, of an open loop, how many requests are due a
	// second.
	Connections int `json:"connections,omitempty"`
	Rate        int `json:"rate,omitempty"`
}

type reply struct {
	Count     int64 `json:"count,omitempty"`
	Status    int   `json:"status,omitempty"`
	Latencies `json:"latencies,omitzero"`
}

// Latencies of a load's requests between its first mark and its stop.
type Latencies struct {
	P50, P99, P999 time.Duration
	Samples        int
}

// Run is the main of the two roles; ok is false for another one.
func Run(role string) (ok bool, err error) {
	switch role {
	case BackendRole:
		return true, runBackend(os.Stdin, os.Stdout)
	case GeneratorRole:
		return true, runGenerator(os.Stdin, os.Stdout)
	}
	return false, nil
}

// fault keeps the first error of many goroutines.
type fault struct {
	mu  sync.Mutex
	err error
}

func (f *fault) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// get returns the error, if any yet.
func (f *fault) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
