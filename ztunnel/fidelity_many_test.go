package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

const (
	// atOnce connections begin at the same instant.
	atOnce = 1000
	// endings of connections, in every order.
	endings = 200
	// shortConns are opened one after the other, by shortWorkers at a time. A machine that takes longer than shortTime, several
	// times what it needs, has not shown anything.
	shortConns   = 50_000
	shortTime    = 110 * time.Second
	shortWorkers = 16
)

func manyScripts() []script {
	return []script{
		{
			name: "at once", client: openAtOnce, server: serveLines,
			wants: sights{client: fmt.Sprintf("%d served", atOnce)},
		},
		{
			name: "endings", client: endAll, server: endAll,
			wants: sights{fmt.Sprintf("%d ended", endings), fmt.Sprintf("%d ended", endings)},
		},
		{name: "short", client: openShort, server: serveShort},
	}
}

func openAtOnce(a *actor) {
	start := make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() { close(start) })
	a.must(concurrently(atOnce, func(i int) error {
		<-start
		c, err := a.dial(0)
		if err != nil {
			return err
		}
		defer c.Close()
		return ask(c, fmt.Appendf(nil, "%08d", i))
	}))
	a.see("%d served", atOnce)
	a.meet("served")
}

// ask sends a line and demands it back.
func ask(c net.Conn, line []byte) error {
	if _, err := c.Write(line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, line) {
		return fmt.Errorf("sent %q, got %q", line, got)
	}
	return nil
}

func serveLines(a *actor) {
	go func() {
		for {
			c, err := a.listener.Accept()
			if err != nil {
				return // the script is over
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	a.meet("served")
}

// endAll ends connection after connection: by the client first, by the server first, by both at once, by a reset of either.
func endAll(a *actor) {
	server := a.listener != nil
	for i := range endings {
		c := a.converse()
		switch first := i%2 == 0; i / 2 % 3 {
		case 0: // one closes, and the other when it sees that
			if first == server {
				_, err := io.Copy(io.Discard, c)
				a.must(err)
			}
		case 1: // at once
		case 2:
			if first != server {
				c.SetLinger(0)
			} else if _, err := io.Copy(io.Discard, c); word(err) != "ECONNRESET" {
				a.must(fmt.Errorf("at the other's reset: %s", word(err)))
			}
		}
		c.Close()
	}
	a.see("%d ended", endings)
}

// openShort opens half of the connections to each of two ports: at one it closes first, at the other the server does. An end
// that closes first keeps its port for a minute (TIME_WAIT): 25,000 of some 28,000 that there are by default.
func openShort(a *actor) {
	a.meet("both ports")
	var begun, served atomic.Int64
	start := time.Now()
	a.must(concurrently(shortWorkers, func(int) error {
		for time.Since(start) < shortTime {
			i := begun.Add(1)
			if i > shortConns {
				break
			}
			if err := a.short(i); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			served.Add(1)
		}
		return nil
	}))
	a.see("%d", served.Load())
	a.meet("served")
}

func (a *actor) short(i int64) error {
	serverFirst := i%2 == 1
	c, err := a.dial(uint16(i % 2))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := ask(c, []byte("?")); err != nil || !serverFirst {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("want the end, got %w", err)
	}
	return nil
}

func serveShort(a *actor) {
	second, err := net.Listen("tcp", fmt.Sprintf("%s:%d", a.to.Addr(), a.to.Port()+1))
	a.must(err)
	defer second.Close()
	a.meet("both ports")
	serve := func(l net.Listener, close func(net.Conn)) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 1)
				io.ReadFull(c, b)
				c.Write(b)
				close(c)
			}()
		}
	}
	go serve(a.listener, func(c net.Conn) { io.Copy(io.Discard, c) })
	go serve(second, func(net.Conn) {})
	a.meet("served")
}

// A thousand connections from one pod in one instant: more than a tunnel's worth, and more than some backlogs.
func testManyAtOnce(t *testing.T, b *bed, paths map[string]*path) {
	eachPath(t, paths, func(t *testing.T, p *path) {
		p.verify(t, named("at once"))
		b.wantCarried(t, p, "")
	})
}

// However connections end, nothing is left of them that a process would have to close.
func testNothingLingers(t *testing.T, b *bed, paths map[string]*path) {
	eachPath(t, paths, func(t *testing.T, p *path) {
		p.verify(t, named("endings"))
		b.wantCarried(t, p, "")
		for _, s := range []*stage{p.client, p.server} {
			wantNoneOpen(t, s.pod)
		}
	})
}

// States of net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpTimeWait    = 6
	tcpListen      = 10
)

// wantNoneOpen waits until the namespace has no sockets but listeners, tunnels and what the kernel keeps for a while.
func wantNoneOpen(t *testing.T, pod *netnstest.Pod) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		open := slices.DeleteFunc(pod.Sockets(), func(s netnstest.Socket) bool {
			tunnel := s.State == tcpEstablished && (s.Local.Port() == route.HBONEPort || s.Remote.Port() == route.HBONEPort)
			return s.State == tcpListen || s.State == tcpTimeWait || tunnel
		})
		if len(open) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d sockets left: %+v", pod.Name, len(open), open)
		}
	}
}

// What short connections take they give back: descriptors, goroutines, ports.
func testShort(t *testing.T, b *bed, paths map[string]*path) {
	p := paths[hbonePath]
	p.play(t, carried, nil)
	b.wantCarried(t, p, "")
	descriptors, goroutines := openDescriptors(t), runtime.NumGoroutine()
	start := time.Now()
	saw := p.play(t, "short", nil)
	took := time.Since(start)
	served, err := strconv.Atoi(saw.client)
	t.Logf("%d connections in %s: %.0f a second", served, took.Round(time.Millisecond), float64(served)/took.Seconds())
	if err != nil || served != shortConns {
		t.Errorf("%d connections, want %d (%v)", served, shortConns, err)
	}
	b.wantCarried(t, p, "")
	// A few: of the tunnels for what was open at the same time, and of the runtime.
	const few = 20
	waitFor(t, func() error {
		if now := openDescriptors(t); now > descriptors+few {
			return fmt.Errorf("%d open descriptors, %d before", now, descriptors)
		}
		if now := runtime.NumGoroutine(); now > goroutines+few {
			return fmt.Errorf("%d goroutines, %d before", now, goroutines)
		}
		return nil
	})
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func waitFor(t *testing.T, holds func() error) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// The proxies' own sockets send what they have at once, and notice an application or a peer that is gone without a word.
func testOptions(t *testing.T, _ *bed, paths map[string]*path) {
	for _, name := range []string{hbonePath, localPath} {
		p := paths[name]
		p.play(t, carried, map[string]func(){carried: func() {
			n := 0
			for _, fd := range establishedSockets(t) {
				n++
				for option, at := range map[string][2]int{"TCP_NODELAY": {unix.IPPROTO_TCP, unix.TCP_NODELAY}, "SO_KEEPALIVE": {unix.SOL_SOCKET, unix.SO_KEEPALIVE}} {
					if value, err := unix.GetsockoptInt(fd, at[0], at[1]); err != nil || value == 0 {
						t.Errorf("%s: %s is %d (%v) on %s", name, option, value, err, endsOf(fd))
					}
				}
			}
			if n < 2 {
				t.Errorf("%s: %d sockets", name, n)
			}
		}})
	}
}

// establishedSockets are the descriptors of this process's TCP connections.
func establishedSockets(t *testing.T) (all []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			t.Fatal(err)
		}
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.State == tcpEstablished {
			all = append(all, fd)
		}
	}
	return all
}

func endsOf(fd int) string {
	local, _ := unix.Getsockname(fd)
	remote, _ := unix.Getpeername(fd)
	return fmt.Sprintf("%+v -> %+v", local, remote)
}
