package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

func (b *bed) followTunnelledUntilEnd() {
	b.tunnelled.most = bpf.MaxTunnelled
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { b.followTunnelled(ctx) })
	b.t.Cleanup(func() { cancel(); group.Wait() })
}

// await publishes a pod that its node is still to capture.
func (b *bed) await(pod *netnstest.Pod, mode mesh.MutualTLS_Mode) {
	b.t.Helper()
	b.say(pod, &mesh.MutualTLS{Mode: mode, AwaitsCapture: true})
}

// say publishes a pod of which something is said.
func (b *bed) say(pod *netnstest.Pod, said *mesh.MutualTLS) {
	b.t.Helper()
	config, err := anypb.New(said)
	if err != nil {
		b.t.Fatal(err)
	}
	protocol := api.TunnelProtocol_NONE
	if said.Mode == mesh.MutualTLS_STRICT || !said.AwaitsCapture {
		protocol = api.TunnelProtocol_HBONE
	}
	workloadtest.Apply(b.t, b.store, &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", pod.Name), Name: pod.Name, Namespace: "shop", ServiceAccount: pod.Name,
		TrustDomain: "cluster.local", Node: pod.Node.Name, ClusterId: "Kubernetes",
		Addresses: workloadtest.Addrs(pod.IPv4.String(), pod.IPv6.String()), TunnelProtocol: protocol,
		Extensions: []*api.Extension{{Name: workload.MutualTLSExtension, Config: config}},
	})
}

func (b *bed) wantTunnelled(want string) {
	b.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var all []string
		for _, r := range b.dumpTunnelled().([]dumpedTunnelled) {
			all = append(all, r.To+" by "+r.By)
		}
		got := strings.Join(all, ", ")
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("by tunnels alone: %q, want %q", got, want)
		}
	}
}

// A permissive pod's connections to one that is not captured are in plaintext. When that turns strict, they end after the grace,
// new ones are refused, and what ztunnel would send all the same the kernel drops.
func TestNothingIsSentInPlaintextToWhatTurnsStrict(t *testing.T) {
	b := newBed(t)
	b.grace = 700 * time.Millisecond
	b.followTunnelledUntilEnd()
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	cart.Start().Listen("[::]:8080")
	client := web.Start()
	running := b.capture(web).(*capture)
	b.publish(web, api.TunnelProtocol_HBONE)
	b.await(cart, mesh.MutualTLS_PERMISSIVE)
	before := mustDial(t, client, cart.IPv4)
	b.wantTransports("outbound plaintext")

	b.await(cart, mesh.MutualTLS_STRICT)
	turned := time.Now()
	mustEcho(t, before)
	var ended error
	for ended == nil && time.Since(turned) < 5*time.Second {
		time.Sleep(10 * time.Millisecond)
		ended = before.EchoWithin("?", time.Second)
	}
	if lasted := time.Since(turned); lasted < b.grace || !errors.Is(ended, unix.ECONNRESET) && !errors.Is(ended, unix.EPIPE) {
		t.Errorf("a connection from before ended with %v, after %s", ended, lasted)
	}
	b.wantTunnelled(fmt.Sprintf("%s/32 by all pods, %s/128 by all pods", cart.IPv4, cart.IPv6))
	arrived := cart.Sniff("eth0")
	if conn, err := client.DialWith(netip.AddrPortFrom(cart.IPv4, 8080), netnstest.DialOptions{Timeout: 15 * time.Second}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connected to what is not captured: %+v, %v; want connection refused", conn, err)
	}
	// A decision that is wrong.
	for _, ip := range []netip.Addr{cart.IPv4, cart.IPv6} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if conn, err := running.redirect.Dial(ctx, netip.AddrPortFrom(ip, 8080)); err == nil {
			conn.Close()
			t.Errorf("ztunnel connects to %s in plaintext", ip)
		}
		cancel()
	}
	for _, frame := range arrived.Take() {
		if tcp := string(frame); len(frame) > 54 && (frame[23] == unix.IPPROTO_TCP || frame[20] == unix.IPPROTO_TCP) {
			t.Errorf("arrived: %x", tcp)
		}
	}
	// As it was, once it is permissive again.
	b.await(cart, mesh.MutualTLS_PERMISSIVE)
	b.wantTunnelled("")
	mustDial(t, client, cart.IPv4)
}

// The same for a single port of a pod, also of one that is captured: the others take plaintext as ever.
func TestNothingIsSentInPlaintextToAPortThatTurnsStrict(t *testing.T) {
	b := newBed(t)
	b.grace = 700 * time.Millisecond
	b.followTunnelledUntilEnd()
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	app := cart.Start()
	app.Listen("[::]:8080")
	app.Listen("[::]:5432")
	client := web.Start()
	running := b.capture(web).(*capture)
	b.publish(web, api.TunnelProtocol_HBONE)
	b.await(cart, mesh.MutualTLS_PERMISSIVE)
	before, other := mustDialPort(t, client, cart.IPv4, 5432), mustDial(t, client, cart.IPv4)
	for _, awaits := range []bool{true, false} {
		b.say(cart, &mesh.MutualTLS{Mode: mesh.MutualTLS_PERMISSIVE, StrictPorts: []uint32{443, 5432}, AwaitsCapture: awaits})
		turned := time.Now()
		if awaits {
			mustEcho(t, before)
			var ended error
			for ended == nil && time.Since(turned) < 5*time.Second {
				time.Sleep(10 * time.Millisecond)
				ended = before.EchoWithin("?", time.Second)
			}
			if lasted := time.Since(turned); lasted < b.grace || !errors.Is(ended, unix.ECONNRESET) && !errors.Is(ended, unix.EPIPE) {
				t.Errorf("a connection from before ended with %v, after %s", ended, lasted)
			}
		}
		var want []string
		for _, ip := range []netip.Addr{cart.IPv4, cart.IPv6} {
			for _, port := range []int{443, 5432} {
				want = append(want, fmt.Sprintf("%s/%d port %d by all pods", ip, ip.BitLen(), port))
			}
		}
		b.wantTunnelled(strings.Join(want, ", "))
		arrived := cart.Sniff("eth0")
		for _, ip := range []netip.Addr{cart.IPv4, cart.IPv6} { // a decision that is wrong
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if conn, err := running.redirect.Dial(ctx, netip.AddrPortFrom(ip, 5432)); err == nil {
				conn.Close()
				t.Errorf("ztunnel connects to port 5432 of %s in plaintext", ip)
			}
			cancel()
		}
		for _, frame := range arrived.Take() {
			if len(frame) > 54 && (frame[23] == unix.IPPROTO_TCP || frame[20] == unix.IPPROTO_TCP) {
				t.Errorf("arrived: %x", frame)
			}
		}
		mustEcho(t, other)
		conn, err := running.redirect.Dial(t.Context(), netip.AddrPortFrom(cart.IPv6, 8080))
		if err != nil {
			t.Fatalf("to a port that takes plaintext: %v", err)
		}
		conn.Close()
	}
}

// What an earlier process knew is so until this one knows better.
func TestTunnelledOutlivesTheProcess(t *testing.T) {
	b := newBed(t)
	b.followTunnelledUntilEnd()
	b.capture(b.network.Node("a").Pod("web"))
	cart := b.network.Node("b").Pod("cart")
	b.await(cart, mesh.MutualTLS_STRICT)
	want := fmt.Sprintf("%s/32 by all pods, %s/128 by all pods", cart.IPv4, cart.IPv6)
	b.wantTunnelled(want)
	b.node.close()
	b.startProcess()
	var known sync.Mutex
	synced := false
	b.synced = func() bool { known.Lock(); defer known.Unlock(); return synced }
	b.followTunnelledUntilEnd()
	time.Sleep(300 * time.Millisecond)
	b.wantTunnelled(want)
	known.Lock()
	synced = true
	known.Unlock()
	b.wantTunnelled("")
}

func TestPlanTunnelled(t *testing.T) {
	one, two, out := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("192.0.2.1")
	ranges := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}
	exact := func(a netip.Addr) bpf.TunnelledTo { return bpf.TunnelledAddr(a, 0) }
	within := func(r netip.Prefix) bpf.TunnelledTo { return bpf.TunnelledTo{Range: r} }
	const all, strict = bpf.TunnelledByAll, bpf.TunnelledByStrict
	type plan = map[bpf.TunnelledTo]bpf.Tunnelled
	everything := []bpf.TunnelledTo{within(netip.MustParsePrefix("0.0.0.0/0")), within(netip.MustParsePrefix("::/0"))}
	port := bpf.TunnelledAddr(one, 5432)
	many := []bpf.TunnelledTo{port, exact(netip.MustParseAddr("10.2.0.9")), exact(two), exact(one), exact(netip.MustParseAddr("10.2.0.7"))}
	for name, c := range map[string]struct {
		shut []bpf.TunnelledTo
		most int
		want plan
		full bool
	}{
		"none":                     {nil, 4, plan{}, false},
		"as many as fit":           {[]bpf.TunnelledTo{exact(two), port}, 2, plan{port: all, exact(two): all}, false},
		"more":                     {many, 4, plan{within(ranges[0]): strict, within(ranges[1]): strict, exact(one): all, exact(two): all}, true},
		"more ports":               {[]bpf.TunnelledTo{bpf.TunnelledAddr(two, 1), bpf.TunnelledAddr(two, 2), port, exact(two)}, 3, plan{everything[0]: strict, everything[1]: strict, exact(two): all}, true},
		"more, and one is outside": {append([]bpf.TunnelledTo{exact(out)}, many...), 4, plan{everything[0]: strict, everything[1]: strict, exact(one): all, exact(two): all}, true},
		"more, and many ranges":    {many, 3, plan{everything[0]: strict, everything[1]: strict, exact(one): all}, true},
	} {
		if got, full := planTunnelled(c.shut, ranges, c.most); full != c.full || !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, full %v; want %v", name, got, full, c.want)
		}
	}
}

// With more strict pods than the kernel is told of, strict pods of this node reach nothing among pods in plaintext, and the node
// says so.
func TestMoreStrictPodsThanTheKernelIsTold(t *testing.T) {
	b := newBed(t)
	b.follow()
	b.tunnelled.most = 4
	web, plain := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("plain")
	plain.Start().Listen("[::]:8080")
	running := b.capture(web).(*capture)
	b.publish(plain, api.TunnelProtocol_NONE)
	b.require(web, mesh.MutualTLS_STRICT)
	for deadline := time.Now().Add(5 * time.Second); !strictOf(t, running); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not strict")
		}
	}
	dial := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		conn, err := running.redirect.Dial(ctx, netip.AddrPortFrom(plain.IPv4, 8080))
		if err == nil {
			conn.Close()
		}
		return err
	}
	if !b.tunnel(b.store.Snapshot()) {
		t.Fatal("not settled")
	}
	if err := dial(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		b.await(b.network.Node("b").Pod(name), mesh.MutualTLS_STRICT)
	}
	if !b.tunnel(b.store.Snapshot()) {
		t.Fatal("not settled")
	}
	if err := dial(); err == nil {
		t.Error("a strict pod's ztunnel sends in plaintext to what may be strict")
	}
	if problems := b.problems(); len(problems) != 1 || !strings.HasPrefix(problems[0], "TunnelledFull: ") {
		t.Errorf("problems %q", problems)
	}
}
