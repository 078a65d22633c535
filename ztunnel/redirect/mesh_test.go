package redirect

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

func TestMain(m *testing.M) {
	netnstest.Main(m, map[string]func(){daemonRole: daemonMain})
}

// A testNode is a node with a redirection, and the least ztunnel that carries connections from pod to pod.
type testNode struct {
	*netnstest.Node
	*Redirect
	config Config
}

func openNode(t testing.TB, node *netnstest.Node) *testNode {
	t.Helper()
	n := &testNode{Node: node, config: configOf(t, node)}
	n.reopen(t)
	t.Cleanup(func() {
		n.Close()
		if err := Remove(n.config); err != nil {
			t.Error(err)
		}
	})
	return n
}

func configOf(t testing.TB, node *netnstest.Node) Config {
	t.Helper()
	return Config{
		PinDir:     filepath.Join(netnstest.BPFFS(t), "ambit"),
		CgroupPath: netnstest.Cgroup(),
		HostNetNS:  node.Path(),
		Logger:     slog.New(slog.DiscardHandler),
	}
}

// reopen is what a new process does.
func (n *testNode) reopen(t testing.TB) {
	t.Helper()
	var err error
	if n.Redirect, err = Open(n.config); err != nil {
		t.Fatal(err)
	}
}

// startKubelet runs what listens at the kubelet's port, and has the node know it.
func startKubelet(t testing.TB, node *netnstest.Node, cgroup string) *netnstest.App {
	t.Helper()
	kubelet := node.StartIn(cgroup)
	kubelet.Listen(fmt.Sprintf("[::]:%d", kubeletPort))
	return kubelet
}

// kubelet is startKubelet for a node that redirects already.
func (n *testNode) kubelet(t testing.TB) *netnstest.App {
	t.Helper()
	kubelet := startKubelet(t, n.Node, netnstest.Cgroup())
	n.lookForKubelet()
	return kubelet
}

// An arrival is a connection that came to a listener of ztunnel's.
type arrival struct {
	at     bpf.Listener
	client netip.Addr
	dst    netip.AddrPort
}

// A tunnel carries the connections of one captured pod, and keeps note of them.
type tunnel struct {
	*Capture
	running sync.WaitGroup
	ctx     context.Context // of what it carries
	cut     context.CancelFunc

	mu       sync.Mutex
	arrivals []arrival
	prepared map[ends]*net.TCPConn // upstreams of connections that were held
}

// capture enrolls a pod and carries its connections until the test ends.
func (n *testNode) capture(t testing.TB, pod *netnstest.Pod) *tunnel {
	t.Helper()
	c, err := n.Enroll(t.Context(), podOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	return carryUntilEnd(t, c)
}

func carryUntilEnd(t testing.TB, c *Capture) *tunnel {
	u := carry(c)
	t.Cleanup(func() { u.closeListeners(); u.cut(); u.running.Wait() })
	return u
}

func podOf(t testing.TB, pod *netnstest.Pod) Pod {
	t.Helper()
	ns, err := podns.Open(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return Pod{UID: pod.Name, NetNS: ns, IPs: []netip.Addr{pod.IPv4, pod.IPv6}}
}

// carry carries a pod's connections, and holds what the pod connects to until its upstream stands.
func carry(c *Capture) *tunnel {
	u := accept(c)
	if err := c.Hold(func(h *Held) { u.running.Go(func() { u.prepare(h) }) }); err != nil {
		panic(err) // in a process of its own there is no test to fail
	}
	return u
}

// prepare answers a held connection by what became of its upstream.
func (u *tunnel) prepare(h *Held) {
	ctx, cancel := context.WithTimeout(u.ctx, 5*time.Second)
	defer cancel()
	client, dst := h.Ends()
	upstream, err := u.dialPeer(ctx, preamble{client.Addr(), dst})
	if errno := unix.Errno(0); errors.As(err, &errno) {
		h.Refuse(errno)
		return
	}
	if err != nil {
		h.Leave()
		return
	}
	u.mu.Lock()
	u.prepared[ends{client, dst}] = upstream
	u.mu.Unlock()
	h.Pass()
}

// takePrepared returns the upstream of a connection that was held, if it was.
func (u *tunnel) takePrepared(key ends) *net.TCPConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	upstream := u.prepared[key]
	delete(u.prepared, key)
	return upstream
}

// accept carries a pod's connections, all of which come to the listeners at once.
func accept(c *Capture) *tunnel {
	u := &tunnel{Capture: c, prepared: map[ends]*net.TCPConn{}}
	u.ctx, u.cut = context.WithCancel(context.Background())
	for kind, l := range c.listeners() {
		if kind == bpf.DNSStream {
			continue // carried nowhere
		}
		u.running.Go(func() {
			for {
				conn, err := l.AcceptTCP()
				if err != nil {
					return
				}
				u.running.Go(func() { u.serve(kind, conn) })
			}
		})
	}
	return u
}

// take returns the connections that arrived since the last call.
func (u *tunnel) take() []arrival {
	u.mu.Lock()
	defer u.mu.Unlock()
	taken := u.arrivals
	u.arrivals = nil
	return taken
}

// preamble begins a connection from one ztunnel to another, where the real one speaks HBONE.
type preamble struct {
	Client netip.Addr
	Dst    netip.AddrPort
}

func (u *tunnel) serve(kind bpf.Listener, conn *net.TCPConn) {
	defer conn.Close()
	defer context.AfterFunc(u.ctx, func() { conn.Close() })()
	client, dst := address(conn.RemoteAddr()).Addr(), address(conn.LocalAddr())
	ctx, cancel := context.WithTimeout(u.ctx, 5*time.Second)
	defer cancel()
	from := bufio.NewReader(conn)
	var upstream *net.TCPConn
	var err error
	switch kind {
	case bpf.Outbound:
		upstream = u.takePrepared(ends{address(conn.RemoteAddr()), dst})
		if upstream == nil {
			upstream, err = u.dialPeer(ctx, preamble{client, dst})
		}
	case bpf.Plaintext:
		upstream, err = u.DialApp(ctx, client, dst)
	case bpf.HBONE:
		var p preamble
		var line []byte
		if line, err = from.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &p)
		}
		if err == nil {
			upstream, err = u.DialApp(ctx, p.Client, p.Dst)
		}
	}
	u.mu.Lock()
	u.arrivals = append(u.arrivals, arrival{kind, client, dst})
	u.mu.Unlock()
	if err != nil {
		conn.SetLinger(0) // reset
		return
	}
	defer upstream.Close()
	defer context.AfterFunc(u.ctx, func() { upstream.Close() })()
	relay(conn, from, upstream)
}

// dialPeer goes to the destination's ztunnel if there is one, else to the destination.
func (u *tunnel) dialPeer(ctx context.Context, p preamble) (*net.TCPConn, error) {
	conn, err := u.Dial(ctx, netip.AddrPortFrom(p.Dst.Addr(), bpf.PortHBONE))
	if err != nil {
		return u.Dial(ctx, p.Dst)
	}
	return conn, json.NewEncoder(conn).Encode(p)
}

func relay(a *net.TCPConn, fromA io.Reader, b *net.TCPConn) {
	var both sync.WaitGroup
	copyOne := func(to *net.TCPConn, from io.Reader) {
		if _, err := io.Copy(to, from); err != nil {
			a.SetLinger(0)
			b.SetLinger(0)
			a.Close()
			b.Close()
			return
		}
		to.CloseWrite()
	}
	both.Go(func() { copyOne(b, fromA) })
	both.Go(func() { copyOne(a, b) })
	both.Wait()
}

func address(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

const (
	daemonRole = "daemon"
	daemonEnv  = "REDIRECT_TEST_DAEMON"
)

// daemonOrder says what a ztunnel of its own process is to do: capture these pods until it is killed.
type daemonOrder struct {
	Config struct{ PinDir, CgroupPath, HostNetNS string }
	Pods   []daemonPod
	Mute   bool // holds connections and never answers
}

type daemonPod struct {
	UID, NetNS string
	IPs        []netip.Addr
}

// startDaemon runs a ztunnel in another process, and waits until it has captured the pods.
func startDaemon(t testing.TB, config Config, pods ...*netnstest.Pod) *netnstest.Process {
	t.Helper()
	return start(t, config, daemonOrder{}, pods...)
}

func start(t testing.TB, config Config, order daemonOrder, pods ...*netnstest.Pod) *netnstest.Process {
	t.Helper()
	order.Config.PinDir, order.Config.CgroupPath, order.Config.HostNetNS = config.PinDir, config.CgroupPath, config.HostNetNS
	for _, p := range pods {
		order.Pods = append(order.Pods, daemonPod{p.Name, p.Path(), []netip.Addr{p.IPv4, p.IPv6}})
	}
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	daemon := netnstest.StartRole(t, daemonRole, daemonEnv+"="+string(text))
	if line, err := bufio.NewReader(daemon.Stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("daemon says %q, %v", line, err)
	}
	return daemon
}

func daemonMain() {
	if err := runDaemon(); err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		os.Exit(1)
	}
}

func runDaemon() error {
	var order daemonOrder
	if err := json.Unmarshal([]byte(os.Getenv(daemonEnv)), &order); err != nil {
		return err
	}
	r, err := Open(Config{
		PinDir:     order.Config.PinDir,
		CgroupPath: order.Config.CgroupPath,
		HostNetNS:  order.Config.HostNetNS,
		Logger:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	for _, p := range order.Pods {
		ns, err := podns.Open(p.NetNS)
		if err != nil {
			return err
		}
		c, err := r.Enroll(context.Background(), Pod{UID: p.UID, NetNS: ns, IPs: p.IPs})
		if err != nil {
			return err
		}
		if !order.Mute {
			carry(c)
		} else if err := c.Hold(func(*Held) {}); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
