package redirect

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// A ztunnel that has gone wrong: what it sends from the namespace of a pod, by a socket of its own.
var wrongs = []struct {
	name string
	send func(u *tunnel, pod *netnstest.Pod, to netip.AddrPort) error
}{
	{name: "connects", send: func(u *tunnel, _ *netnstest.Pod, to netip.AddrPort) error {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		conn, err := u.Dial(ctx, to)
		if err == nil {
			conn.Close()
		}
		return err
	}},
	{name: "raw socket", send: func(u *tunnel, pod *netnstest.Pod, to netip.AddrPort) error {
		return pod.Do(func() error {
			fd, err := unix.Socket(familyOf(to), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := u.redirect.node.Tag(fd, bpf.Tunnel); err != nil {
				return err
			}
			return unix.Sendto(fd, synTo(to.Port()), 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
		})
	}},
	{name: "packet socket", send: ownFrame(false)},
	{name: "packet socket past the queue", send: ownFrame(true)},
}

// ownFrame sends a SYN by a packet socket.
func ownFrame(bypass bool) func(*tunnel, *netnstest.Pod, netip.AddrPort) error {
	return func(u *tunnel, pod *netnstest.Pod, to netip.AddrPort) error {
		f := frame{bypass: bypass, tag: func(fd int) error { return u.redirect.node.Tag(fd, bpf.Tunnel) }}
		return pod.Do(func() error { return f.send(pod, to) })
	}
}

// A pod that is reached by tunnels alone gets nothing else of ztunnel's, whatever that does, from whatever pod, and nothing more in
// a connection that stands; others do.
func TestZtunnelReachesByTunnelsAlone(t *testing.T) {
	for _, c := range []struct{ strict, withoutTCX bool }{{false, false}, {true, false}, {true, true}} {
		t.Run(fmt.Sprintf("from a strict pod: %v, without tcx: %v", c.strict, c.withoutTCX), func(t *testing.T) {
			network := netnstest.New(t, "a", "b")
			a, b := openNode(t, network.Node("a")), network.Node("b")
			a.withoutTCX = c.withoutTCX
			source, shut, open := a.Pod("source"), b.Pod("shut"), b.Pod("open")
			for _, p := range []*netnstest.Pod{shut, open} {
				app := p.Start()
				app.Listen("[::]:8080")
				app.Listen("[::]:15008")
			}
			u := a.capture(t, source)
			if err := u.SetStrict(c.strict, 0); err != nil {
				t.Fatal(err)
			}
			port, arrived := source.SniffPort(), shut.Sniff("eth0")
			for _, ips := range [][2]netip.Addr{{shut.IPv4, open.IPv4}, {shut.IPv6, open.IPv6}} {
				testTunnelled(t, a, u, source, ips[0], ips[1], port, arrived)
			}
		})
	}
}

func testTunnelled(t *testing.T, a *testNode, u *tunnel, source *netnstest.Pod, shut, open netip.Addr, port, arrived *netnstest.Sniffer) {
	to := netip.AddrPortFrom(shut, appPort)
	stands, err := u.Dial(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer stands.Close()
	for _, wrong := range wrongs {
		_ = wrong.send(u, source, to)
		eventually(t, wrong.name+" is seen while plaintext may go there", func() bool { return plaintext(arrived.Take()) > 0 })
	}
	want := map[bpf.TunnelledTo]bpf.Tunnelled{bpf.TunnelledAddr(shut, 0): bpf.TunnelledByAll}
	if err := a.TunnelOnly(want); err != nil {
		t.Fatal(err)
	}
	settle := func() {
		for still := true; still; {
			time.Sleep(20 * time.Millisecond)
			still = plaintext(port.Take())+plaintext(arrived.Take()) > 0
		}
	}
	// What the other end says is not ztunnel's: it closes what stood, or resets it.
	quiet := func(what string) {
		t.Helper()
		time.Sleep(30 * time.Millisecond)
		if n := plaintext(arrived.Take()); n != 0 {
			t.Errorf("%s: %d frames of plaintext arrived", what, n)
		}
		port.Take()
	}
	settle()
	for _, wrong := range append(wrongs, wrongs[0]) {
		before := verdicts(t, a)["guard_dropped_plaintext"]
		if err := wrong.send(u, source, to); err == nil && wrong.name == "connects" {
			t.Errorf("%s: connected", wrong.name)
		}
		eventually(t, wrong.name+" is dropped", func() bool { return verdicts(t, a)["guard_dropped_plaintext"] > before })
		quiet(wrong.name)
	}
	if _, err := stands.Write([]byte("in plaintext")); err != nil {
		t.Error(err)
	}
	quiet("a connection that stood")
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(shut, bpf.PortHBONE), netip.AddrPortFrom(open, appPort)} {
		conn, err := u.Dial(t.Context(), to)
		if err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
		conn.Close()
	}
	reread, err := a.node.Tunnelled()
	if err != nil || !maps.Equal(reread, want) {
		t.Errorf("the kernel has %v, %v; want %v", reread, err, want)
	}
	if err := a.TunnelOnly(nil); err != nil {
		t.Fatal(err)
	}
	conn, err := u.Dial(t.Context(), to)
	if err != nil {
		t.Fatalf("after it was opened again: %v", err)
	}
	conn.Close()
}

// Of a pod single ports of which are reached by tunnels alone, these get nothing else of ztunnel's, whatever that does and from
// whatever pod; the others do, and so do the same ports of others.
func TestZtunnelReachesPortsByTunnelsAlone(t *testing.T) {
	for _, strict := range []bool{false, true} {
		network := netnstest.New(t, "a", "b")
		a, b := openNode(t, network.Node("a")), network.Node("b")
		source, partly, open := a.Pod("source"), b.Pod("partly"), b.Pod("open")
		for _, p := range []*netnstest.Pod{partly, open} {
			app := p.Start()
			for _, at := range []string{"[::]:8080", "[::]:5432", "[::]:15008"} {
				app.Listen(at)
			}
		}
		u := a.capture(t, source)
		if err := u.SetStrict(strict, 0); err != nil {
			t.Fatal(err)
		}
		arrived := partly.Sniff("eth0")
		for _, ips := range [][2]netip.Addr{{partly.IPv4, open.IPv4}, {partly.IPv6, open.IPv6}} {
			shut := netip.AddrPortFrom(ips[0], 5432)
			want := map[bpf.TunnelledTo]bpf.Tunnelled{bpf.TunnelledAddr(ips[0], 5432): bpf.TunnelledByAll, bpf.TunnelledAddr(ips[0], 1): bpf.TunnelledByAll}
			if err := a.TunnelOnly(want); err != nil {
				t.Fatal(err)
			}
			if told, err := a.node.Tunnelled(); err != nil || !maps.Equal(told, want) {
				t.Errorf("the kernel has %v, %v; want %v", told, err, want)
			}
			for _, wrong := range wrongs {
				before := verdicts(t, a)["guard_dropped_plaintext"]
				if err := wrong.send(u, source, shut); err == nil && wrong.name == "connects" {
					t.Errorf("strict %v: %s: connected to %s", strict, wrong.name, shut)
				}
				eventually(t, wrong.name+" is dropped", func() bool { return verdicts(t, a)["guard_dropped_plaintext"] > before })
				time.Sleep(30 * time.Millisecond)
				if n := plaintext(arrived.Take()); n != 0 {
					t.Errorf("strict %v: %s: %d frames of plaintext arrived at %s", strict, wrong.name, n, shut)
				}
			}
			for _, to := range []netip.AddrPort{
				netip.AddrPortFrom(ips[0], appPort), netip.AddrPortFrom(ips[0], bpf.PortHBONE), netip.AddrPortFrom(ips[1], 5432),
			} {
				conn, err := u.Dial(t.Context(), to)
				if err != nil {
					t.Fatalf("strict %v: to %s: %v", strict, to, err)
				}
				conn.Close()
			}
			for still := true; still; {
				time.Sleep(20 * time.Millisecond)
				still = plaintext(arrived.Take()) > 0
			}
		}
	}
}

// Neither does a listener of ztunnel's answer it, in plaintext.
func TestZtunnelAnswersByTunnelsAlone(t *testing.T) {
	for _, strict := range []bool{false, true} {
		network := netnstest.New(t, "a", "b")
		a := openNode(t, network.Node("a"))
		server, client := a.Pod("server"), network.Node("b").Pod("client")
		server.Start().Listen("[::]:8080")
		app := client.Start()
		u := a.capture(t, server)
		if err := u.SetStrict(strict, 0); err != nil {
			t.Fatal(err)
		}
		for _, ips := range [][2]netip.Addr{{client.IPv4, server.IPv4}, {client.IPv6, server.IPv6}} {
			to := netip.AddrPortFrom(ips[1], appPort)
			mustDial(t, app, to).Close()
			if err := a.TunnelOnly(map[bpf.TunnelledTo]bpf.Tunnelled{bpf.TunnelledAddr(ips[0], 0): bpf.TunnelledByAll}); err != nil {
				t.Fatal(err)
			}
			before := verdicts(t, a)["guard_dropped_plaintext"]
			if _, err := app.DialWith(to, netnstest.DialOptions{Timeout: 300 * time.Millisecond}); err == nil {
				t.Errorf("strict %v: %s is answered in plaintext", strict, ips[0])
			}
			if verdicts(t, a)["guard_dropped_plaintext"] == before {
				t.Errorf("strict %v: nothing dropped", strict)
			}
			if err := client.Do(func() error { return connects(netip.AddrPortFrom(ips[1], bpf.PortHBONE)) }); err != nil {
				t.Errorf("strict %v: a tunnel from %s: %v", strict, ips[0], err)
			}
		}
	}
}

// connects waits for the handshake alone.
func connects(to netip.AddrPort) error {
	fd, err := unix.Socket(familyOf(to), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sockaddr(to))
}

// What may be a strict pod's, for all that there is room to know, strict pods reach by tunnels alone; others do not.
func TestRangesThatStrictPodsReachByTunnelsAlone(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	strict, permissive, other := a.Pod("strict"), a.Pod("permissive"), network.Node("b").Pod("other")
	other.Start().Listen("[::]:8080")
	from := map[bool]*tunnel{true: a.capture(t, strict), false: a.capture(t, permissive)}
	if err := from[true].SetStrict(true, 0); err != nil {
		t.Fatal(err)
	}
	everything := map[bpf.TunnelledTo]bpf.Tunnelled{
		{Range: netip.MustParsePrefix("0.0.0.0/0")}: bpf.TunnelledByStrict, {Range: netip.MustParsePrefix("::/0")}: bpf.TunnelledByStrict,
	}
	if err := a.TunnelOnly(everything); err != nil {
		t.Fatal(err)
	}
	for isStrict, u := range from {
		for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			conn, err := u.Dial(ctx, netip.AddrPortFrom(ip, appPort))
			cancel()
			if err == nil {
				conn.Close()
			}
			if (err != nil) != isStrict {
				t.Errorf("from a strict pod %v, to %s: %v", isStrict, ip, err)
			}
		}
	}
	a.Close() // what was said outlives the process
	a.reopen(t)
	if told, err := a.TunnelledOnly(); err != nil || !maps.Equal(told, everything) {
		t.Errorf("told %v, %v", told, err)
	}
}

// Where there is no room for more, that is an error, and what was said stays.
func TestTunnelledIsBounded(t *testing.T) {
	a := openNode(t, netnstest.New(t, "a").Node("a"))
	want := map[bpf.TunnelledTo]bpf.Tunnelled{}
	at := netip.MustParseAddr("10.0.0.0")
	for range bpf.MaxTunnelled {
		want[bpf.TunnelledAddr(at, 0)] = bpf.TunnelledByAll
		at = at.Next()
	}
	if err := a.TunnelOnly(want); err != nil {
		t.Fatal(err)
	}
	want[bpf.TunnelledAddr(at, 0)] = bpf.TunnelledByAll
	if err := a.TunnelOnly(want); err == nil {
		t.Error("there is room for more than there is room for")
	}
	// One that goes makes room.
	delete(want, bpf.TunnelledAddr(netip.MustParseAddr("10.0.0.0"), 0))
	if err := a.TunnelOnly(want); err != nil {
		t.Error(err)
	}
	told, err := a.node.Tunnelled()
	if err != nil || !maps.Equal(told, want) {
		t.Errorf("%d in the kernel, %v; want %d", len(told), err, len(want))
	}
}
