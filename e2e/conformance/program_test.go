package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// program is a child process.
type program struct {
	*os.Process
	exited chan struct{}
}

// start runs a program until the test ends, and waits until it listens at addr.
// What it wrote is shown if the test failed.
func start(t *testing.T, addr string, args ...string) *program {
	t.Helper()
	var out bytes.Buffer
	command := exec.Command(args[0], args[1:]...)
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{Process: command.Process, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		command.Wait()
	}()
	t.Cleanup(func() {
		p.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s:\n%s", args[0], out.Bytes())
		}
	})
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.exited:
			t.Fatalf("%s has exited", args[0])
		default:
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen at %s", args[0], addr)
		}
	}
}

// freeAddr is an address that nobody listened at a moment ago.
func freeAddr(t *testing.T) *net.TCPAddr {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr)
}

// dial opens a tunnel to a peer, as ztunnel does.
func dial(t *testing.T, p *pki, addr string) *hbone.Client {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := hbone.NewWire(raw.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	tlsConn := tls.Client(wire, p.tls())
	if err := tlsConn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	client, err := hbone.NewClient(tlsConn, hbone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// listener serves tunnels that a peer opens, as ztunnel does.
type listener struct {
	*net.TCPAddr
	// drain lets the tunnels that are open drain, once; those that come later live on.
	drain func()
	// ended receives the end of each tunnel.
	ended   chan error
	tunnels atomic.Int32
}

func listen(t *testing.T, p *pki, apps *apps) *listener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	first, drain := context.WithCancel(context.Background())
	later, stop := context.WithCancel(context.Background())
	s := &listener{TCPAddr: l.Addr().(*net.TCPAddr), drain: drain, ended: make(chan error, 1000)}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			raw, err := l.AcceptTCP()
			if err != nil {
				return
			}
			running.Go(func() {
				stop := context.AfterFunc(later, func() { raw.Close() })
				defer stop()
				wire, err := hbone.NewWire(raw)
				if err != nil {
					return
				}
				c := tls.Server(wire, p.tls())
				if err := c.HandshakeContext(later); err != nil {
					c.Close()
					return
				}
				s.tunnels.Add(1)
				ctx := first
				if first.Err() != nil {
					ctx = later
				}
				s.ended <- hbone.Serve(ctx, c, hbone.Options{}, apps.serve)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		stop()
		drain()
		running.Wait()
	})
	return s
}
