package redirect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// Connections in both directions, opened before a pod is captured, while it is, and after it was let go, all live on.
func TestEstablishedConnectionsSurvive(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	captured, other := a.Pod("captured"), network.Node("b").Pod("other")
	near, far, node := captured.Start(), other.Start(), a.kubelet(t)
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	var conns []*netnstest.AppConn
	open := func() {
		t.Helper()
		for _, way := range []struct {
			from *netnstest.App
			to   netip.Addr
		}{
			{near, other.IPv4}, {near, other.IPv6}, {far, captured.IPv4}, {far, captured.IPv6}, {node, captured.IPv4},
		} {
			conns = append(conns, mustDial(t, way.from, netip.AddrPortFrom(way.to, appPort)))
		}
		for i, c := range conns {
			if err := c.Echo("still here"); err != nil {
				t.Errorf("connection %d, %v: %v", i, c.Sight, err)
			}
		}
	}
	open()
	u := a.capture(t, captured)
	open()
	if got := len(u.take()); got != 4 {
		t.Errorf("%d connections were carried, want 4", got)
	}
	if err := u.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	open()
	expect(t, u)
	// And around again.
	u = a.capture(t, captured)
	open()
	if got := len(u.take()); got != 4 {
		t.Errorf("%d connections were carried, want 4", got)
	}
}

// While pods are captured and let go again and again, no new connection fails and none is cut.
func TestNoConnectionFailsWhilePodsComeAndGo(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	client, server := a.Pod("client"), b.Pod("server")
	server.Start().Listen("[::]:8080")
	stop := make(chan struct{})
	var dialled atomic.Int64
	var clients sync.WaitGroup
	for _, ip := range []netip.Addr{server.IPv4, server.IPv6} {
		app := client.Start()
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := app.Dial(netip.AddrPortFrom(ip, appPort))
				if err == nil {
					err = errors.Join(conn.Echo("hello"), conn.Close())
				}
				if err != nil {
					t.Errorf("after %d connections: %v", dialled.Load(), err)
					return
				}
				dialled.Add(1)
			}
		})
	}
	for range 10 {
		// As the mesh does: who is captured first can already be tunnelled to.
		s := b.capture(t, server)
		time.Sleep(10 * time.Millisecond)
		c := a.capture(t, client)
		time.Sleep(20 * time.Millisecond)
		if err := c.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if err := s.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	clients.Wait()
	if dialled.Load() < 100 {
		t.Errorf("only %d connections were made", dialled.Load())
	}
	t.Logf("%d connections", dialled.Load())
}

// Release waits for connections that the kernel has accepted and ztunnel has not.
func TestReleaseLosesNoConnectionInTheQueue(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, client := a.Pod("pod"), a.Pod("client")
	pod.Start().Listen("[::]:8080")
	c, err := a.Enroll(t.Context(), podOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	dialled := make(chan error, 1)
	app := client.Start()
	go func() {
		_, err := app.Dial(netip.AddrPortFrom(pod.IPv4, appPort))
		dialled <- err
	}()
	eventually(t, "the connection is in the queue", func() bool { return queued(c.Plaintext) == 1 })
	released := make(chan error, 1)
	go func() { released <- c.Release(context.Background()) }()
	select {
	case err := <-released:
		t.Fatalf("released with a connection in the queue: %v", err)
	case <-time.After(connectTime + 3*handshakeTime):
	}
	carryUntilEnd(t, c)
	if err := <-dialled; err != nil {
		t.Error(err)
	}
	if err := <-released; err != nil {
		t.Error(err)
	}
}

// Release with a context that has ended lets the pod go all the same.
func TestReleaseDoesNotWaitLongerThanItsContext(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, client := a.Pod("pod"), a.Pod("client")
	pod.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if err := u.Release(ended); err != nil {
			t.Error(err)
		}
	}
	mustDial(t, client.Start(), netip.AddrPortFrom(pod.IPv4, appPort))
	expect(t, u)
}

// A pod that was let go has plain networking, and nothing of it remains on the node.
func TestReleaseRestoresPlainNetworking(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	near, far := pod.Start(), other.Start()
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	u := a.capture(t, pod)
	if err := u.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		from *netnstest.App
		to   netip.Addr
	}{{near, other.IPv4}, {near, other.IPv6}, {far, pod.IPv4}, {far, pod.IPv6}} {
		conn := mustDial(t, way.from, netip.AddrPortFrom(way.to, appPort))
		if conn.Peer.Remote != conn.Local {
			t.Errorf("server sees %v, client is %v", conn.Peer.Remote, conn.Local)
		}
	}
	for _, port := range u.ports {
		if _, err := near.Dial(netip.AddrPortFrom(pod.IPv4, port)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("port %d: %v, want connection refused", port, err)
		}
	}
	enrolled, err := a.node.Enrolled()
	if err != nil || len(enrolled) != 0 {
		t.Errorf("captured: %v, %v", enrolled, err)
	}
	pods, err := a.node.Pods()
	if err != nil || len(pods) != 0 {
		t.Errorf("addresses of captured pods: %v, %v", pods, err)
	}
	if uids, err := a.pins.uids(); err != nil || len(uids) != 0 {
		t.Errorf("pinned: %v, %v", uids, err)
	}
	expect(t, u)
}

// StopOutbound lets go of one direction only.
func TestStopOutbound(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), a.Pod("other")
	near, far := pod.Start(), other.Start()
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	u := a.capture(t, pod)
	if err := u.StopOutbound(); err != nil {
		t.Fatal(err)
	}
	mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort))
	expect(t, u)
	dst := netip.AddrPortFrom(pod.IPv4, appPort)
	mustDial(t, far, dst)
	expect(t, u, arrival{bpf.Plaintext, other.IPv4, dst})
}

// A pod is paired only with a namespace that bears its addresses, and never with the node's.
func TestWrongNamespaceIsRefused(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), a.Pod("other")

	mixed := podOf(t, pod)
	mixed.IPs = []netip.Addr{pod.IPv4, other.IPv6}
	_, err := a.Enroll(t.Context(), mixed)
	var mismatch *AddressMismatch
	if !errors.As(err, &mismatch) {
		t.Errorf("another pod's address: %v, want AddressMismatch", err)
	} else if want := "pod pod has addresses " + pod.IPv4.String() + ", " + other.IPv6.String(); len(mismatch.Have) < 2 ||
		mismatch.Error()[:len(want)] != want {
		t.Errorf("the error does not name both: %v", err)
	}

	loopback := podOf(t, pod)
	loopback.IPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if _, err := a.Enroll(t.Context(), loopback); !errors.As(err, &mismatch) {
		t.Errorf("loopback address: %v, want AddressMismatch", err)
	}

	node := podOf(t, &netnstest.Pod{NetNS: a.NetNS, Name: "host", IPv4: a.IPv4, IPv6: a.IPv6})
	var host *HostNamespace
	if _, err := a.Enroll(t.Context(), node); !errors.As(err, &host) {
		t.Errorf("the node's namespace: %v, want HostNamespace", err)
	}

	for name, ips := range map[string][]netip.Addr{
		"no address": nil, "two of a family": {pod.IPv4, other.IPv4}, "an invalid one": {{}},
	} {
		wrong := podOf(t, pod)
		wrong.IPs = ips
		if _, err := a.Enroll(t.Context(), wrong); err == nil {
			t.Errorf("%s: captured", name)
		}
	}
	for _, uid := range []string{"", ".", "..", "a/b", "a.b", string(make([]byte, 64))} {
		wrong := podOf(t, pod)
		wrong.UID = uid
		if _, err := a.Enroll(t.Context(), wrong); err == nil {
			t.Errorf("UID %q: captured", uid)
		}
	}
	if uids, err := a.pins.uids(); err != nil || len(uids) != 0 {
		t.Errorf("pinned: %v, %v", uids, err)
	}
}

// Enroll is idempotent, and two pods never share anything.
func TestEnrollTwice(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), a.Pod("other")
	first := a.capture(t, pod)
	again, err := a.Enroll(t.Context(), podOf(t, pod))
	if err != nil || again != first.Capture {
		t.Errorf("enrolled again: %p, %v; want %p", again, err, first.Capture)
	}
	impostor := podOf(t, other)
	impostor.UID = "pod"
	if _, err := a.Enroll(t.Context(), impostor); err == nil {
		t.Error("one UID was captured in two namespaces")
	}
}

// An enrolment that fails on the way leaves nothing behind.
func TestFailedEnrollmentLeavesNothing(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, client := a.Pod("pod"), a.Pod("client")
	pod.Start().Listen("[::]:8080")
	a.config.Procfs = t.TempDir() // without sys/net
	a.Redirect.config.Procfs = a.config.Procfs
	if _, err := a.Enroll(t.Context(), podOf(t, pod)); err == nil {
		t.Fatal("captured without sysctls")
	}
	mustDial(t, client.Start(), netip.AddrPortFrom(pod.IPv4, appPort))
	if pods, err := a.node.Pods(); err != nil || len(pods) != 0 {
		t.Errorf("addresses of captured pods: %v, %v", pods, err)
	}
	if uids, err := a.pins.uids(); err != nil || len(uids) != 0 {
		t.Errorf("pinned: %v, %v", uids, err)
	}
	a.Redirect.config.Procfs = "/proc"
	a.capture(t, pod)
}

// Sysctls are the pod's, by whatever procfs they are written: in a container that is the node's, mounted somewhere.
func TestSysctlsAreWrittenByAnyProcfs(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	procfs := t.TempDir()
	if err := unix.Mount("proc", procfs, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(procfs, unix.MNT_DETACH) })
	a.Redirect.config.Procfs = procfs
	pod := a.Pod("pod")
	a.capture(t, pod)
	for _, name := range []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"} {
		path := filepath.Join("/proc/sys/net", name)
		if got, err := os.ReadFile(path); err != nil || string(got) != "0\n" {
			t.Errorf("%s of the process is %q, %v", name, got, err)
		}
		err := pod.Do(func() error {
			got, err := os.ReadFile(path)
			if string(got) != "1\n" {
				t.Errorf("%s of the pod is %q", name, got)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// While the process lives, what it captured stays captured without the pins too.
func TestPinsAreLost(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), a.Pod("other")
	near, far := pod.Start(), other.Start()
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	u := a.capture(t, pod)
	if err := os.RemoveAll(a.config.PinDir); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // the kernel lets go of pins when it gets round to it
	out, in := netip.AddrPortFrom(other.IPv4, appPort), netip.AddrPortFrom(pod.IPv4, appPort)
	mustDial(t, near, out)
	mustDial(t, far, in)
	expect(t, u, arrival{bpf.Outbound, pod.IPv4, out}, arrival{bpf.Plaintext, other.IPv4, in})
	if err := u.Release(t.Context()); err != nil {
		t.Error(err)
	}
	mustDial(t, near, out)
	mustDial(t, far, in)
	expect(t, u)
}

// A new pod's IPv6 address is tentative for a second: enrolment waits for it.
func TestTentativeAddress(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod := a.Pod("pod")
	tentative := netip.MustParseAddr("fd00:1::beef")
	err := pod.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_dad", []byte("1"), 0); err != nil {
			return err
		}
		return addAddress("eth0", netip.PrefixFrom(tentative, 64))
	})
	if err != nil {
		t.Fatal(err)
	}
	p := podOf(t, pod)
	p.IPs = []netip.Addr{pod.IPv4, tentative}
	if _, err := a.Enroll(t.Context(), p); err != nil {
		t.Error(err)
	}
}

func BenchmarkEnroll(b *testing.B) {
	network := netnstest.New(b, "a")
	a := openNode(b, network.Node("a"))
	pod := podOf(b, a.Pod("pod"))
	ended, cancel := context.WithCancel(b.Context())
	cancel()
	for b.Loop() {
		c, err := a.Enroll(b.Context(), pod)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Release(ended); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkDialApp is a connection to the application under the client's address, BenchmarkDialAppPlain one under the pod's.
func BenchmarkDialApp(b *testing.B) {
	benchmarkDialApp(b, func(p *netnstest.Pod) netip.Addr { return p.Node.IPv4 })
}
func BenchmarkDialAppPlain(b *testing.B) {
	benchmarkDialApp(b, func(p *netnstest.Pod) netip.Addr { return p.IPv4 })
}

func benchmarkDialApp(b *testing.B, client func(*netnstest.Pod) netip.Addr) {
	network := netnstest.New(b, "a")
	a := openNode(b, network.Node("a"))
	pod := a.Pod("pod")
	pod.Start().Listen("[::]:8080")
	u := a.capture(b, pod)
	dst := netip.AddrPortFrom(pod.IPv4, appPort)
	for b.Loop() {
		conn, err := u.DialApp(b.Context(), client(pod), dst)
		if err != nil {
			b.Fatal(err)
		}
		conn.SetLinger(0) // leaves no TIME_WAIT
		conn.Close()
	}
}

// A client comes by itself once the pod is let go, from the port that ztunnel had for him, shortly after the application has ended
// that connection.
func TestReleaseForgetsConnectionsThatTheApplicationEnded(t *testing.T) {
	const connections = 8 // half of them have timestamps that seem old
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, client := a.Pod("pod"), network.Node("b").Pod("client")
	c, err := a.Enroll(t.Context(), podOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(pod.IPv4, appPort)
	farewell(t, pod, to)
	if err := client.Do(func() error { // as of another machine, or behind a NAT that has given it another port
		return os.WriteFile("/proc/sys/net/ipv4/tcp_timestamps", []byte("2"), 0o644)
	}); err != nil {
		t.Fatal(err)
	}
	var ports []int
	for range connections {
		conn, err := c.DialApp(t.Context(), client.IPv4, to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, conn.LocalAddr().(*net.TCPAddr).Port)
		conn.Close()
	}
	if err := c.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		if err := client.Do(func() error {
			from := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client.IPv4, uint16(port))), Timeout: 3 * time.Second}
			conn, err := from.Dial("tcp", to.String())
			if err == nil {
				conn.Close()
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}

// farewell has a server in the pod that ends each connection at once.
func farewell(t *testing.T, pod *netnstest.Pod, at netip.AddrPort) {
	t.Helper()
	var listener net.Listener
	if err := pod.Do(func() (err error) {
		listener, err = net.Listen("tcp", at.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
}
