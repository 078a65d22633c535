package redirect

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

const appPort = 8080

// Two captured pods talk through both their ztunnels, whatever the family, near or far, and neither application can tell:
// each sees the other's address.
func TestCapturedPodsTalkThroughTheirZtunnels(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	client, near, far := a.Pod("client"), a.Pod("near"), b.Pod("far")
	app := client.Start()
	from := a.capture(t, client)
	tunnels := map[*netnstest.Pod]*tunnel{near: a.capture(t, near), far: b.capture(t, far)}
	for _, server := range []*netnstest.Pod{near, far} {
		server.Start().Listen("[::]:8080")
		for _, way := range []struct {
			name    string
			ip      netip.Addr
			client  netip.Addr
			options netnstest.DialOptions
		}{
			{"IPv4", server.IPv4, client.IPv4, netnstest.DialOptions{}},
			{"IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{}},
			{"mapped IPv4", server.IPv4, client.IPv4, netnstest.DialOptions{Mapped: true}},
			{"MPTCP", server.IPv4, client.IPv4, netnstest.DialOptions{MPTCP: true}},
			{"MPTCP IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{MPTCP: true}},
			{"bound to a device", server.IPv4, client.IPv4, netnstest.DialOptions{Device: "eth0"}},
			{"bound to a device, IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{Device: "eth0"}},
			{"with a mark of its own", server.IPv4, client.IPv4, netnstest.DialOptions{Mark: 0x77}},
			{"bound to the pod's address", server.IPv4, client.IPv4, netnstest.DialOptions{Source: client.IPv4}},
			{"bound to the pod's address, IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{Source: client.IPv6}},
		} {
			t.Run(server.Name+"/"+way.name, func(t *testing.T) {
				dst := netip.AddrPortFrom(way.ip, appPort)
				conn, err := app.DialWith(dst, way.options)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := conn.Echo("hello"); err != nil {
					t.Error(err)
				}
				if conn.Remote != dst || conn.Local.Addr() != way.client {
					t.Errorf("client sees %v", conn.Sight)
				}
				if conn.Peer.Local != dst || conn.Peer.Remote.Addr() != way.client {
					t.Errorf("server sees %v", conn.Peer)
				}
				expect(t, from, arrival{bpf.Outbound, way.client, dst})
				expect(t, tunnels[server], arrival{bpf.HBONE, way.client, netip.AddrPortFrom(way.ip, bpf.PortHBONE)})
			})
		}
	}
}

// expect demands that exactly these connections arrived since the last call.
func expect(t testing.TB, u *tunnel, want ...arrival) {
	t.Helper()
	got := u.take()
	if len(got) != len(want) {
		t.Errorf("arrived: %v, want %v", got, want)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("arrived: %v, want %v", got[i], want[i])
		}
	}
}

// A client without a ztunnel arrives in plaintext, and the application sees its address.
func TestClientOutsideTheMeshArrivesInPlaintext(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	server := a.Pod("server")
	server.Start().Listen("[::]:8080")
	in := a.capture(t, server)
	near, far := a.Pod("near"), network.Node("b").Pod("far")
	for _, client := range []struct {
		name     string
		in       *netnstest.NetNS
		ip4, ip6 netip.Addr
	}{
		{"pod of the node", near.NetNS, near.IPv4, near.IPv6},
		{"pod of another node", far.NetNS, far.IPv4, far.IPv6},
		{"another node", network.Node("b").NetNS, network.Node("b").IPv4, network.Node("b").IPv6},
	} {
		t.Run(client.name, func(t *testing.T) {
			app := client.in.Start()
			for _, way := range []struct{ ip, client netip.Addr }{{server.IPv4, client.ip4}, {server.IPv6, client.ip6}} {
				conn := mustDial(t, app, netip.AddrPortFrom(way.ip, appPort))
				if conn.Peer.Remote.Addr() != way.client {
					t.Errorf("server sees %v, want %v", conn.Peer.Remote, way.client)
				}
				expect(t, in, arrival{bpf.Plaintext, way.client, netip.AddrPortFrom(way.ip, appPort)})
			}
		})
	}
}

// What a captured pod says to a server outside the mesh leaves from the pod's own address.
func TestServerOutsideTheMeshIsReached(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	client, server := a.Pod("client"), network.Node("b").Pod("server")
	server.Start().Listen("[::]:8080")
	out := a.capture(t, client)
	app := client.Start()
	for _, way := range []struct{ ip, client netip.Addr }{{server.IPv4, client.IPv4}, {server.IPv6, client.IPv6}} {
		dst := netip.AddrPortFrom(way.ip, appPort)
		conn := mustDial(t, app, dst)
		if conn.Peer.Remote.Addr() != way.client {
			t.Errorf("server sees %v, want %v", conn.Peer.Remote, way.client)
		}
		expect(t, out, arrival{bpf.Outbound, way.client, dst})
	}
}

// A probe from the node's namespace reaches the application itself, its source port included.
func TestNodeReachesItsPodsDirectly(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	server := a.Pod("server")
	server.Start().Listen("[::]:8080")
	in := a.capture(t, server)
	kubelet := a.kubelet(t)
	for _, ip := range []netip.Addr{server.IPv4, server.IPv6} {
		for range 3 {
			conn := mustDial(t, kubelet, netip.AddrPortFrom(ip, appPort))
			if conn.Peer.Remote != conn.Local {
				t.Errorf("server sees %v, client is %v", conn.Peer.Remote, conn.Local)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	expect(t, in)
	if _, err := kubelet.Dial(netip.AddrPortFrom(server.IPv4, 81)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("closed port: %v, want connection refused", err)
	}
}

// A tunnel from one captured pod to another of the node is stopped by its listeners, as everyone is: only deliveries pass.
func TestTunnelHasNoPassage(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	from, to := a.Pod("from"), a.Pod("to")
	to.Start().Listen("[::]:8080")
	out, in := a.capture(t, from), a.capture(t, to)
	for _, way := range []struct{ client, ip netip.Addr }{{from.IPv4, to.IPv4}, {from.IPv6, to.IPv6}} {
		dst := netip.AddrPortFrom(way.ip, appPort)
		conn, err := out.Dial(t.Context(), dst)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		eventually(t, "the tunnel arrives", func() bool {
			arrivals := in.take()
			return len(arrivals) == 1 && arrivals[0] == arrival{bpf.Plaintext, way.client, dst}
		})
	}
	expect(t, out)
}

// A delivery goes to the pod's own addresses, and the application only.
func TestDeliveryGoesToThePodAlone(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), a.Pod("other")
	other.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	for _, dst := range []netip.AddrPort{
		netip.AddrPortFrom(other.IPv4, appPort),
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), appPort),
		netip.AddrPortFrom(pod.IPv4, u.ports[bpf.Outbound]),
		netip.AddrPortFrom(pod.IPv6, u.ports[bpf.HBONE]),
	} {
		if conn, err := u.DialApp(t.Context(), other.IPv4, dst); err == nil {
			t.Errorf("delivered to %s: %v", dst, conn.RemoteAddr())
		}
	}
	expect(t, u)
}

// A dial ends with its context, and says why.
func TestDialEndsWithItsContext(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod := a.Pod("pod")
	u := a.capture(t, pod)
	if err := pod.Do(func() error { // where nobody answers
		return netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: 2, State: netlink.NUD_PERMANENT, IP: net.IPv4(10, 1, 0, 99), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 99},
		})
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := u.Dial(ctx, netip.MustParseAddrPort("10.1.0.99:80"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want deadline exceeded", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("after %v", took)
	}
	if _, err := u.Dial(t.Context(), netip.MustParseAddrPort("192.0.2.1:80")); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("%v, want unreachable", err)
	}
}

// The kubelet reaches pods directly, and no other process of the node, be it of a pod that uses the node's network or not. Where
// it is now counts, and where it was last if it is gone.
func TestTheKubeletAlonePasses(t *testing.T) {
	network := netnstest.New(t, "a")
	pods := []string{
		netnstest.AddCgroup(t, "kubepods.slice/kubepods-burstable.slice/pod1"),
		netnstest.AddCgroup(t, "kubelet.slice/kubelet-kubepods.slice/pod2"),
		netnstest.AddCgroup(t, "kubelet/kubepods/besteffort/pod3"),
	}
	first, second := netnstest.AddCgroup(t, "system.slice/kubelet.service"), netnstest.AddCgroup(t, "system.slice/kubelet2.service")
	another := netnstest.AddCgroup(t, "system.slice/backup.service")
	a := openNode(t, network.Node("a"))
	pod := a.Pod("pod")
	pod.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	passes := func(from *netnstest.App, want bool, what string) {
		t.Helper()
		for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
			mustDial(t, from, netip.AddrPortFrom(ip, appPort))
			if got := len(u.take()); (got == 0) != want {
				t.Errorf("%s to %s: %d connections came to ztunnel", what, ip, got)
			}
		}
	}
	problem := func() bool {
		return slices.ContainsFunc(a.Problems(), func(p *Problem) bool { return p.Code == KubeletMissing })
	}
	passes(a.StartIn(first), false, "nobody is known to be the kubelet")
	if !problem() {
		t.Error("it is no problem that there is none")
	}
	kubelet := startKubelet(t, a.Node, first)
	a.lookForKubelet()
	passes(kubelet, true, "the kubelet")
	passes(a.StartIn(first), true, "what the kubelet started")
	passes(a.StartIn(another), false, "another process")
	passes(a.StartIn(netnstest.Cgroup()), false, "a process of the root cgroup")
	for _, cgroup := range pods {
		passes(a.StartIn(cgroup), false, cgroup)
	}
	if problem() {
		t.Errorf("problems: %v", a.Problems())
	}
	// It ends, and starts in another place.
	kubelet.Kill()
	a.lookForKubelet()
	if !problem() {
		t.Error("it is no problem that it is gone")
	}
	a.Close()
	a.reopen(t)
	u = a.capture(t, pod)
	passes(a.StartIn(first), true, "where it was last")
	startKubelet(t, a.Node, second)
	eventually(t, "it is found", func() bool { return !problem() })
	passes(a.StartIn(second), true, "the kubelet in another place")
	passes(a.StartIn(first), false, "where it was before")
}

// A pod at the node's network that takes the kubelet's port gets nothing by it.
func TestAPodIsNoKubelet(t *testing.T) {
	network := netnstest.New(t, "a")
	cgroup := netnstest.AddCgroup(t, "kubepods.slice/pod1")
	a := openNode(t, network.Node("a"))
	pod := a.Pod("pod")
	pod.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	impostor := startKubelet(t, a.Node, cgroup)
	a.lookForKubelet()
	mustDial(t, impostor, netip.AddrPortFrom(pod.IPv4, appPort))
	if got := len(u.take()); got != 1 {
		t.Errorf("%d connections came to ztunnel, want 1", got)
	}
}

// Passage is for one connection: once that is closed, another client with the same address and port has none.
func TestPassageEndsWithTheConnection(t *testing.T) {
	network := netnstest.New(t, "a")
	cgroup := netnstest.AddCgroup(t, "kubepods.slice/pod1")
	a := openNode(t, network.Node("a"))
	pod := a.Pod("pod")
	server := pod.Start()
	server.Listen("[::]:8080")
	u := a.capture(t, pod)
	bridge := netip.MustParseAddr("10.1.0.1")
	dst, from := netip.AddrPortFrom(pod.IPv4, appPort), netnstest.DialOptions{Source: bridge, Port: 40000}
	before := verdicts(t, a)
	conn, err := a.kubelet(t).DialWith(dst, from)
	if err != nil {
		t.Fatal(err)
	}
	server.Kill() // the server's end closes first, so that the client's leaves no TIME_WAIT
	pod.Start().Listen("[::]:8080")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "passage is withdrawn", func() bool {
		return verdicts(t, a)["permit_withdrawn"] > before["permit_withdrawn"]
	})
	expect(t, u)
	if _, err := a.StartIn(cgroup).DialWith(dst, from); err != nil {
		t.Fatal(err)
	}
	expect(t, u, arrival{bpf.Plaintext, bridge, dst})
}

// A pod talks to itself without ztunnel.
func TestPodTalksToItselfDirectly(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod := a.Pod("pod")
	app := pod.Start()
	app.Listen("[::]:8080")
	u := a.capture(t, pod)
	other := pod.Start()
	for _, ip := range []string{"127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "::", pod.IPv4.String(), pod.IPv6.String()} {
		conn, err := other.Dial(netip.AddrPortFrom(netip.MustParseAddr(ip), appPort))
		if err != nil {
			t.Errorf("%s: %v", ip, err)
		} else if conn.Peer.Remote != conn.Local {
			t.Errorf("%s: server sees %v, client is %v", ip, conn.Peer.Remote, conn.Local)
		}
	}
	expect(t, u)
}

// UDP is left alone both ways.
func TestUDPIsLeftAlone(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	captured, other := a.Pod("captured"), network.Node("b").Pod("other")
	near, far := captured.Start(), other.Start()
	near.ListenUDP("[::]:53")
	far.ListenUDP("[::]:53")
	a.capture(t, captured)
	for _, way := range []struct {
		from     *netnstest.App
		to, sees netip.Addr
	}{
		{near, other.IPv4, captured.IPv4},
		{near, other.IPv6, captured.IPv6},
		{far, captured.IPv4, other.IPv4},
		{far, captured.IPv6, other.IPv6},
	} {
		sight, err := way.from.AskUDP(netip.AddrPortFrom(way.to, 53))
		if err != nil || sight.Remote.Addr() != way.sees {
			t.Errorf("to %s: server sees %v, %v; want %s", way.to, sight.Remote, err, way.sees)
		}
	}
}

// Where nobody listens, the client is told so at once.
func TestClosedPortIsRefused(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	client, server, stranger := a.Pod("client"), b.Pod("server"), a.Pod("stranger")
	a.capture(t, client)
	in := b.capture(t, server)
	for _, ip := range []netip.Addr{server.IPv4, server.IPv6} {
		dst := netip.AddrPortFrom(ip, 81)
		for name, from := range map[string]*netnstest.Pod{"captured client": client, "stranger": stranger} {
			start := time.Now()
			_, err := from.Start().Dial(dst)
			if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("%s to %s: %v, want a reset", name, dst, err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s to %s: told after %v", name, dst, took)
			}
		}
		for name, ip := range map[string]netip.Addr{"client": client.IPv4, "client 6": client.IPv6, "the pod": ip} {
			if _, err := in.DialApp(t.Context(), ip, dst); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("DialApp to %s for %s: %v, want connection refused", dst, name, err)
			}
		}
	}
}

// A client may have a connection of its own from the port that a delivery would use: the delivery takes another, and neither
// disturbs the other.
func TestDeliveryAvoidsTheClientsOwnPorts(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, client := a.Pod("pod"), a.Pod("client")
	pod.Start().Listen("[::]:8080")
	app := client.Start()
	const port = 2000
	var before []*netnstest.AppConn
	for _, ip := range []netip.Addr{client.IPv4, client.IPv6} { // straight to the application
		conn, err := app.DialWith(netip.AddrPortFrom(sameFamily(pod, ip), appPort), netnstest.DialOptions{Source: ip, Port: port})
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, conn)
	}
	u := a.capture(t, pod)
	for _, ip := range []netip.Addr{client.IPv4, client.IPv6} { // and to ztunnel
		conn, err := app.DialWith(netip.AddrPortFrom(sameFamily(pod, ip), appPort), netnstest.DialOptions{Source: ip, Port: port + 1})
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, conn)
	}
	for _, ip := range []netip.Addr{client.IPv4, client.IPv6} {
		dst := netip.AddrPortFrom(sameFamily(pod, ip), appPort)
		deliver := func(port uint16) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			conn, err := u.connect(ctx, dst, func(fd int) error { return u.spoof(fd, netip.AddrPortFrom(ip, port)) })
			if err == nil {
				conn.Close()
			}
			return err
		}
		for taken := range uint16(2) {
			if err := deliver(port + taken); !errors.Is(err, unix.EPERM) {
				t.Errorf("delivery from %s:%d: %v, want not permitted", ip, port+taken, err)
			}
		}
		was := verdicts(t, a)
		if err := deliver(port + 2); err != nil {
			t.Errorf("delivery from %s:%d: %v", ip, port+2, err)
		}
		is := verdicts(t, a)
		if is["steer_permitted"]-was["steer_permitted"] != 1 || is["steer_plaintext"] != was["steer_plaintext"] {
			t.Errorf("one delivery was counted as: before %v, after %v", was, is)
		}
	}
	for _, conn := range before {
		if err := conn.Echo("still here"); err != nil {
			t.Errorf("%v: %v", conn.Sight, err)
		}
	}
}

// Deliveries that choose the same port at the same time do not take each other's way past the pod's listeners: all but one
// of them choose another.
func TestDeliveriesDoNotTakeEachOthersPermit(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	a.spoofed = portRange{2000, 2003}
	pod, client := a.Pod("pod"), a.Pod("client")
	pod.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	was := verdicts(t, a)
	const workers, each = 16, 1000
	var deliveries sync.WaitGroup
	var taken atomic.Int64
	for range workers {
		deliveries.Go(func() {
			for range each {
				conn, err := u.DialApp(t.Context(), client.IPv4, netip.AddrPortFrom(pod.IPv4, appPort))
				if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EPERM) {
					taken.Add(1)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				conn.SetLinger(0) // its port is free at once
				conn.Close()
			}
		})
	}
	deliveries.Wait()
	is := verdicts(t, a)
	u.closeListeners()
	u.cut()
	u.running.Wait()
	if back := u.take(); len(back) != 0 {
		t.Errorf("%d deliveries came back to ztunnel, the first from %s to %s", len(back), back[0].client, back[0].dst)
	}
	if n := is["steer_permitted"] - was["steer_permitted"]; n < workers*each/2 {
		t.Errorf("%d deliveries of %d reached the application, %d found every port taken", n, workers*each, taken.Load())
	}
	if is["connect_denied_taken"] == was["connect_denied_taken"] {
		t.Error("no two deliveries met: the test shows nothing")
	}
}

// An application that closes first keeps the connection's ends for a minute (TIME_WAIT), and yet they can be used again: by a
// delivery as by any other connection.
func TestDeliveryReusesWhatTheApplicationClosed(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, client := a.Pod("pod"), a.Pod("client")
	u := a.capture(t, pod)
	for _, ip := range []netip.Addr{client.IPv4, client.IPv6} {
		for range 3 {
			app := pod.Start()
			app.Listen("[::]:8080")
			conn, err := u.connect(t.Context(), netip.AddrPortFrom(sameFamily(pod, ip), appPort), func(fd int) error {
				return u.spoof(fd, netip.AddrPortFrom(ip, 2000))
			})
			if err != nil {
				t.Fatalf("delivery from %s: %v", ip, err)
			}
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			line := bufio.NewReader(conn)
			if _, err := line.ReadBytes('\n'); err != nil {
				t.Fatal(err)
			}
			app.Kill() // which closes
			if _, err := line.ReadByte(); err != io.EOF {
				t.Fatalf("after the application's end: %v", err)
			}
			conn.Close()
		}
	}
	waiting := slices.DeleteFunc(pod.Sockets(), func(s netnstest.Socket) bool {
		return s.State != uint8(unix.BPF_TCP_TIME_WAIT) || s.Local.Port() != appPort
	})
	if len(waiting) != 2 {
		t.Errorf("in TIME_WAIT at the application's side: %v, want one for each family", waiting)
	}
}

func sameFamily(pod *netnstest.Pod, ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return pod.IPv4
	}
	return pod.IPv6
}

// Whoever got to the outbound listener would speak in the pod's name: nobody gets to ztunnel's listeners by their ports.
func TestListenersCannotBeAskedForByPort(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, stranger := a.Pod("pod"), a.Pod("stranger")
	u := a.capture(t, pod)
	for name, from := range map[string]*netnstest.App{"pod": pod.Start(), "stranger": stranger.Start(), "node": a.Start()} {
		for _, port := range u.ports {
			for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
				if port == bpf.PortHBONE && name != "pod" {
					continue // that is where tunnels arrive
				}
				conn, err := from.Dial(netip.AddrPortFrom(ip, port))
				if err == nil {
					t.Errorf("%s reached %s:%d: %v", name, ip, port, conn.Sight)
				}
			}
		}
	}
	app := pod.Start()
	for _, port := range u.ports {
		for _, ip := range []string{"127.0.0.1", "::1"} {
			if _, err := app.Dial(netip.AddrPortFrom(netip.MustParseAddr(ip), port)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("pod to %s:%d: %v, want connection refused", ip, port, err)
			}
		}
	}
	for _, a := range u.take() {
		if a.at != bpf.Plaintext || a.client == pod.IPv4 || a.client == pod.IPv6 {
			t.Errorf("%v reached a listener", a)
		}
	}
}

// An application may use the ports that ztunnel prefers.
func TestApplicationKeepsItsPorts(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, stranger := a.Pod("pod"), a.Pod("stranger")
	app := pod.Start()
	app.Listen("[::]:15001")
	app.Listen("[::]:15006")
	u := a.capture(t, pod)
	for _, port := range []uint16{15001, 15006} {
		dst := netip.AddrPortFrom(pod.IPv4, port)
		mustDial(t, pod.Start(), dst)
		conn := mustDial(t, stranger.Start(), dst)
		if conn.Peer.Remote.Addr() != stranger.IPv4 {
			t.Errorf("server sees %v", conn.Peer.Remote)
		}
		expect(t, u, arrival{bpf.Plaintext, stranger.IPv4, dst})
	}
}

// A socket that is bound to an address which is not the pod's in the mesh would not reach ztunnel: it may not connect.
func TestForeignSourceMayNotConnect(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, server := a.Pod("pod"), network.Node("b").Pod("server")
	server.Start().Listen("[::]:8080")
	second := netip.MustParseAddr("10.1.0.200")
	if err := pod.Do(func() error { return addAddress("eth0", netip.PrefixFrom(second, 24)) }); err != nil {
		t.Fatal(err)
	}
	u := a.capture(t, pod)
	_, err := pod.Start().DialWith(netip.AddrPortFrom(server.IPv4, appPort), netnstest.DialOptions{Source: second})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("bound to %s: %v, want not permitted", second, err)
	}
	expect(t, u)
}

// Addresses that the mesh does not know, of another network of the pod, are reached past ztunnel.
func TestOtherNetworksOfThePodAreLeftAlone(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, stranger := a.Pod("pod"), a.Pod("stranger")
	second := netip.MustParseAddr("10.1.0.200")
	if err := pod.Do(func() error { return addAddress("eth0", netip.PrefixFrom(second, 24)) }); err != nil {
		t.Fatal(err)
	}
	pod.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	conn := mustDial(t, stranger.Start(), netip.AddrPortFrom(second, appPort))
	if conn.Peer.Remote != conn.Local {
		t.Errorf("server sees %v, client is %v", conn.Peer.Remote, conn.Local)
	}
	expect(t, u)
}

// A pod of one family may not leave by the other, where nothing would bring it to ztunnel.
func TestFamilyWithoutAddressMayNotConnect(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, server := a.Pod("pod"), network.Node("b").Pod("server")
	server.Start().Listen("[::]:8080")
	only4 := podOf(t, pod)
	only4.IPs = []netip.Addr{pod.IPv4}
	c, err := a.Enroll(t.Context(), only4)
	if err != nil {
		t.Fatal(err)
	}
	carryUntilEnd(t, c)
	app := pod.Start()
	mustDial(t, app, netip.AddrPortFrom(server.IPv4, appPort))
	if _, err := app.Dial(netip.AddrPortFrom(server.IPv6, appPort)); !errors.Is(err, unix.EPERM) {
		t.Errorf("IPv6: %v, want not permitted", err)
	}
}

func mustDial(t testing.TB, from *netnstest.App, to netip.AddrPort) *netnstest.AppConn {
	t.Helper()
	conn, err := from.Dial(to)
	if err != nil {
		t.Fatalf("dial %s: %v", to, err)
	}
	if err := conn.Echo("hello"); err != nil {
		t.Fatalf("echo at %s: %v", to, err)
	}
	return conn
}

func addAddress(device string, prefix netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	ip := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: ip})
}

func verdicts(t testing.TB, n *testNode) map[string]uint64 {
	t.Helper()
	v, err := n.Verdicts()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Errorf("not in 5 s: %s", what)
}
