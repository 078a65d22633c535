package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/kube/kubetest"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/succession"
)

// process is one that serves strict pods.
type process struct {
	*dataplane
	running []pods.Running
	rest    func() // looks after the node no more
}

// serveStrict has the bed's process capture pods, which are strict.
func (b *bed) serveStrict(t *testing.T, all ...*netnstest.Pod) *process {
	t.Helper()
	p := &process{dataplane: b.dataplane}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { p.followStrictness(ctx) })
	p.rest = func() { cancel(); group.Wait() }
	t.Cleanup(p.rest)
	for _, pod := range all {
		b.require(pod, mesh.MutualTLS_STRICT)
	}
	for _, pod := range all {
		p.running = append(p.running, b.capture(pod))
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		strict := true
		for _, running := range p.running {
			strict = strict && strictOf(t, running)
		}
		if strict {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatal("not strict")
		}
	}
}

// kill ends all that a process has open, as its end does: nothing is let go, and what is pinned stays.
func (p *process) kill() {
	p.rest()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, running := range p.running {
		running.Drain(ctx)
	}
	p.node.close()
}

// inClear counts the frames of TCP that are not a tunnel's, and those of them that are the last of an end.
func inClear(wires []*netnstest.Sniffer) (all, last int) {
	const fin, rst = 0x01, 0x04
	for _, wire := range wires {
		for _, frame := range wire.Take() {
			header := 0
			switch {
			case len(frame) >= 54 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP && frame[23] == unix.IPPROTO_TCP:
				header = 34
			case len(frame) >= 74 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IPV6 && frame[20] == unix.IPPROTO_TCP:
				header = 54
			default:
				continue
			}
			if binary.BigEndian.Uint16(frame[header:]) == 15008 || binary.BigEndian.Uint16(frame[header+2:]) == 15008 {
				continue
			}
			if all++; frame[header+13]&(fin|rst) != 0 {
				last++
			}
		}
	}
	return all, last
}

// endInClear makes a connection that is not captured, and returns when nothing of it comes any more.
func endInClear(t *testing.T, client *netnstest.App, to netip.Addr, wires []*netnstest.Sniffer) {
	t.Helper()
	mustDial(t, client, to).Close()
	seen := 0
	for deadline := time.Now().Add(10 * time.Second); seen < len(wires); time.Sleep(10 * time.Millisecond) { // a wire shows what comes from one side
		if time.Now().After(deadline) {
			t.Fatalf("of a connection before the capture, the wires show the end %d times", seen)
		}
		_, last := inClear(wires)
		seen += last
	}
	time.Sleep(100 * time.Millisecond) // the acknowledgements
	inClear(wires)
}

// The next ztunnel dies in the middle of taking over, the former one ends for that, and another comes: meanwhile what is open lives as
// long as who carries it, new connections of strict pods fail at worst, and nothing is in plaintext on the wire.
func TestTheNextProcessDiesWhileItTakesOver(t *testing.T) {
	for name, captures := range map[string]int{"before it captured a pod": 0, "between two pods": 1} {
		t.Run(name, func(t *testing.T) { testHeirDies(t, captures) })
	}
}

func testHeirDies(t *testing.T, captures int) {
	b := newBed(t)
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	server, client := cart.Start(), web.Start()
	server.Listen("[::]:8080")
	client.Listen("[::]:8080")
	wires := []*netnstest.Sniffer{web.SniffPort(), cart.SniffPort()}
	endInClear(t, client, cart.IPv4, wires)
	// tries are what applications do all the time; some fail.
	tries := func(when string) {
		t.Helper()
		for _, try := range []struct {
			from *netnstest.App
			to   netip.Addr
		}{{client, cart.IPv4}, {client, cart.IPv6}, {server, web.IPv4}, {server, web.IPv6}} {
			conn, err := try.from.DialWith(netip.AddrPortFrom(try.to, 8080), netnstest.DialOptions{Timeout: 150 * time.Millisecond})
			if err == nil {
				conn.EchoWithin("is this in clear?", 150*time.Millisecond)
				conn.Close()
			}
		}
		if n, _ := inClear(wires); n > 0 {
			t.Errorf("%s: %d frames in plaintext", when, n)
		}
	}

	first := b.serveStrict(t, web, cart)
	open := mustDial(t, client, cart.IPv4)
	heir, wire := waitForHeir(t)
	z := &ztunnel{
		settings: settings{Grace: time.Minute}, logger: slog.New(slog.DiscardHandler), node: first.node, conns: first.conns,
		dataplane: first.dataplane, pods: pods.New(pods.Config{Client: kubetest.Client{Interface: fake.NewClientset()}, Logger: slog.New(slog.DiscardHandler)}), heir: heir,
	}
	if _, err := wire.Write([]byte("take over\n")); err != nil {
		t.Fatal(err)
	}
	<-heir.Asked()
	first.rest()
	bequeathed := make(chan error, 1)
	go func() { bequeathed <- z.bequeath(context.Background(), context.Background(), context.Background()) }()
	if line, err := bufio.NewReader(wire).ReadString('\n'); line != "ceded\n" {
		t.Fatalf("%q, %v", line, err)
	}
	tries("nobody looks after the node")

	b.startProcess()
	next := b.serveStrict(t, []*netnstest.Pod{web, cart}[:captures]...)
	tries("the next has captured some")
	mustEcho(t, open)
	select {
	case err := <-bequeathed:
		t.Fatalf("ended while the next one lives: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	next.kill()
	wire.Close()
	select {
	case err := <-bequeathed:
		if err == nil {
			t.Error("the next one died, and nobody is to be started anew")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the next one died, and the former one goes on as if it had not")
	}
	tries("the next is dead")
	mustEcho(t, open)
	first.kill()
	tries("both are dead")
	if err := open.EchoWithin("too late", time.Second); err == nil {
		t.Error("a connection outlived the process that carried it")
	}

	b.startProcess()
	b.serveStrict(t, web, cart)
	mustDial(t, client, cart.IPv4)
	mustDial(t, server, web.IPv6)
	tries("another has come")
}

// One that asks for the node and then hangs does not leave the node to nobody for good.
func TestTheNextProcessHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quiet := slog.New(slog.DiscardHandler)
		z := &ztunnel{
			settings: settings{Grace: time.Minute}, logger: quiet, heir: succession.New("", quiet), dataplane: &dataplane{},
			node:  newNode(func() (*redirect.Redirect, error) { return nil, errors.New("no kernel") }, quiet),
			conns: conns.New(conns.Config{Logger: quiet, Registerer: prometheus.NewRegistry()}),
			pods:  pods.New(pods.Config{Client: kubetest.Client{Interface: fake.NewClientset()}, Logger: quiet}),
		}
		began := time.Now()
		if err := z.bequeath(t.Context(), t.Context(), t.Context()); err == nil || time.Since(began) != heirPatience {
			t.Errorf("%v, after %s", err, time.Since(began))
		}
	})
}

// waitForHeir waits as a process does that serves, and is connected to as the next one does.
func waitForHeir(t *testing.T) (*succession.Heir, net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	heir := succession.New(path, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := heir.Wait(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", path)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return heir, conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
