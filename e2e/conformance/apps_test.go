// Package conformance holds the tunnel of package hbone against other
// implementations of HTTP/2 CONNECT, as child processes on loopback.
//
//	apps_test.go     what runs at the far end, and what each peer has to carry
//	pki_test.go      a CA, and TLS for both ends
//	program_test.go  a child process
//	nghttpx_test.go  nghttp2's proxy, as server and as client of the tunnel
//	envoy_test.go    Envoy, likewise (make test-envoy installs it)
//	h2spec           the h2spec suite; a module of its own
//
// A peer that is not installed fails the tests: make setup installs them.
package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// conn is a connection through a tunnel, at either end.
type conn interface {
	net.Conn
	CloseWrite() error
}

// The applications, by the port that is asked for.
const (
	echoPort    = 7    // sends back what it gets, then closes its half as well
	greetPort   = 13   // speaks first, closes its half, then reads to the end
	resetPort   = 9    // resets once five bytes have come
	refusedPort = 503  // is not there
	holdPort    = 4444 // reads to the end and tells how that was
)

const greeting = "greeting"

// apps are the far end of a tunnel.
type apps struct {
	// read receives, from greetPort, how many bytes it read, and how that ended.
	read chan result
	// held likewise, from holdPort.
	held chan result
}

type result struct {
	n   int64
	err error
}

func newApps() *apps { return &apps{read: make(chan result, 1), held: make(chan result, 1)} }

// run is the application at port.
func (a *apps) run(port int, c conn, reset func()) {
	defer c.Close()
	switch port {
	case echoPort:
		if _, err := io.Copy(c, c); err == nil {
			c.CloseWrite()
		}
	case greetPort:
		io.WriteString(c, greeting)
		c.CloseWrite()
		n, err := io.Copy(io.Discard, c)
		select {
		case a.read <- result{n, err}:
		default:
		}
	case resetPort:
		io.ReadFull(c, make([]byte, 5))
		reset()
	case holdPort:
		n, err := io.Copy(io.Discard, c)
		a.held <- result{n, err}
	}
}

// serve is the handler of our server.
func (a *apps) serve(_ context.Context, in *hbone.Incoming) {
	_, digits, err := net.SplitHostPort(in.Authority)
	port, _ := strconv.Atoi(digits)
	if err != nil || port == refusedPort {
		in.Refuse(refusedPort, "refused")
		return
	}
	st, err := in.Accept()
	if err != nil {
		return
	}
	a.run(port, st, func() { st.Reset() })
}

// abort closes a TCP connection with a reset.
func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// bulk is more than any window of either side.
const bulk = 8 << 20

// echoes sends size bytes, and wants them back and then the end.
func echoes(c conn, seed byte, size int) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(sent)
	wrote := make(chan error, 1)
	go func() {
		if _, err := c.Write(sent); err != nil {
			wrote <- err
			return
		}
		wrote <- c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-wrote); err != nil {
		return fmt.Errorf("echo of %d bytes: %d, %w", size, len(got), err)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("echo of %d bytes differs: %d", size, len(got))
	}
	return nil
}

// returns sends size bytes and wants them back, while both halves stay open.
func returns(c conn, seed byte, size int) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	sent, got := make([]byte, size), make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(sent)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	n, err := io.ReadFull(c, got)
	if err != nil {
		return fmt.Errorf("%d bytes of %d return: %w", n, size, err)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes return as others", size)
	}
	return <-wrote
}

// together runs f so many times at once.
func together(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			if err := f(i); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	running.Wait()
}

// within ends the test if no value comes within five seconds.
func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: not within five seconds", what)
		panic("unreachable")
	}
}

// eventually ends the test if so is not true within five seconds.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within five seconds", what)
		}
	}
}

// target is where our client asks to be connected.
func target(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(port))
}
