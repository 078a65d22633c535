package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

func TestMain(m *testing.M) { netnstest.Main(m, map[string]func(){actorRole: actorMain}) }

// bed is two nodes whose pods one process captures: what it cannot know is that
// there is only one of it.
type bed struct {
	t       testing.TB
	network *netnstest.Network
	config  redirect.Config
	ca      *certstest.CA
	made    int // pods of paths

	resolvers []netip.AddrPort // of the node
	settling  chan struct{}    // closed unless a test says otherwise
	state     string           // folder
	*dataplane
}

func newBed(t testing.TB) *bed {
	b := &bed{t: t, network: netnstest.New(t, "a", "b"), ca: certstest.NewCA(t, "cluster.local"), state: t.TempDir()}
	b.config = redirect.Config{
		PinDir:     filepath.Join(netnstest.BPFFS(t), "ambit"),
		CgroupPath: netnstest.Cgroup(),
		HostNetNS:  b.network.Node("a").Path(),
		Logger:     slog.New(slog.DiscardHandler),
	}
	t.Cleanup(func() {
		if err := redirect.Remove(b.config); err != nil {
			t.Error(err)
		}
	})
	b.settling = make(chan struct{})
	close(b.settling)
	b.startProcess()
	return b
}

// startProcess makes what a process has; what an earlier one pinned is found.
func (b *bed) startProcess() {
	b.t.Helper()
	logger := slog.New(slog.DiscardHandler)
	store := workloadtest.Store(b.t, &mesh.Config{TrustDomain: "cluster.local", ClusterId: "Kubernetes", PodRanges: []string{"10.0.0.0/8", "fd00::/16"}})
	held := certs.New(certs.Config{Fetch: b.ca.Fetch, Bundle: b.ca.Bundle, Logger: logger})
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { held.Run(ctx) })
	client, err := feed.New(feed.Config{
		Address: "controller:15012", Store: store, Logger: logger,
		Node:  feed.Node{Role: "ztunnel", PodName: "z", Namespace: "ambit-system", NodeName: "a", IPs: []netip.Addr{netip.MustParseAddr("10.1.0.9")}},
		Roots: (&roots{store: store}).pool, Token: func() (string, error) { return "", nil },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	carrier, err := relay.New()
	if err != nil {
		b.t.Fatal(err)
	}
	n := newNode(func() (*redirect.Redirect, error) { return redirect.Open(b.config) }, logger)
	if !n.try() {
		_, err := n.get()
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		n.close()
		carrier.Close()
		cancel()
		group.Wait()
	})
	dnsMetrics := dns.NewMetrics(prometheus.NewRegistry())
	b.dataplane = &dataplane{
		node: n, trustDomain: "cluster.local", clusterID: "Kubernetes", nodeName: "a",
		certs: held, store: store, feed: client,
		conns:     conns.New(conns.Config{Logger: logger, Registerer: prometheus.NewRegistry()}),
		relay:     carrier,
		endpoints: endpoints.New(endpoints.Config{Logger: logger, Registerer: prometheus.NewRegistry()}),
		resolver:  dns.NewResolver(func() []netip.AddrPort { return b.resolvers }, dnsMetrics), dnsMetrics: dnsMetrics, egress: egress.NewMetrics(prometheus.NewRegistry()), names: readNames(filepath.Join(b.state, "names.json"), logger),
		pools: pool.NewMetrics(prometheus.NewRegistry()), policy: everybody{}, quotas: accept.NewQuotas(accept.Limits{}), shares: quota.NewShares(1 << 20),
		synced: func() bool { return true }, onNode: func() ([]string, bool) { return nil, true }, settled: func() <-chan struct{} { return b.settling }, started: make(chan struct{}, 1), startedEgress: make(chan struct{}, 1), logger: logger, captures: map[string]*capture{}, another: make(chan struct{}),
	}
}

// everybody is admitted: these tests are about how.
type everybody struct{}

func (everybody) Admit(context.Context, *conns.Attempt) error { return nil }
func (everybody) Follow(*conns.Conn) func()                   { return func() {} }

// target is a pod as the pods package hands it over.
func (b *bed) target(pod *netnstest.Pod) pods.Target {
	b.t.Helper()
	inode, err := podNamespaces{}.Inode(pod.Path())
	if err != nil {
		b.t.Fatal(err)
	}
	return pods.Target{
		UID: "uid-" + pod.Name, Namespace: "shop", Name: pod.Name, ServiceAccount: pod.Name,
		DNS:     true,
		Sandbox: pods.Sandbox{Path: pod.Path(), Inode: inode, IPs: []netip.Addr{pod.IPv4, pod.IPv6}},
	}
}

// A pod whose applications run already goes on as it was until the mesh can carry
// what it does; one that is starting is captured all the same.
func TestARunningPodWaitsForItsCertificate(t *testing.T) {
	b := newBed(t)
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	server, client := cart.Start(), web.Start()
	server.Listen("[::]:8080")
	down := certs.New(certs.Config{Fetch: b.ca.Fetch, Bundle: b.ca.Bundle, Logger: slog.New(slog.DiscardHandler)}) // it never runs
	b.dataplane.certs = down

	serving := b.target(web)
	serving.Serving = true
	_, err := b.Start(t.Context(), serving)
	if coded, ok := errors.AsType[pods.Coded](err); !ok || coded.Code() != "CertificateMissing" {
		t.Errorf("%v, want code CertificateMissing", err)
	}
	mustDial(t, client, cart.IPv4)
	if pinned := b.Pinned(); len(pinned) > 0 {
		t.Errorf("pinned: %q", pinned)
	}

	b.capture(web) // not Serving
	b.publish(cart, api.TunnelProtocol_HBONE)
	if conn, err := client.Dial(netip.AddrPortFrom(cart.IPv4, 8080)); err == nil {
		if err := conn.Echo("hello"); err == nil {
			t.Error("captured without a certificate, and yet its connection was carried")
		}
	}
}

// A process that takes over has one pod of the node captured already, and not yet another that it connects to: the connection waits
// for that, and not for what is not there once all are captured.
func TestConnectionWithinANodeThatIsTakenOverWaits(t *testing.T) {
	b := newBed(t)
	web, cart, gone := b.network.Node("a").Pod("web"), b.network.Node("a").Pod("cart"), b.network.Node("a").Pod("gone")
	cart.Start().Listen("[::]:8080")
	client := web.Start()
	b.settling = make(chan struct{})
	b.capture(web)
	for _, pod := range []*netnstest.Pod{web, cart, gone} {
		b.publish(pod, api.TunnelProtocol_HBONE)
	}
	dial := func(to *netnstest.Pod) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := client.DialWith(netip.AddrPortFrom(to.IPv4, 8080), netnstest.DialOptions{Timeout: 20 * time.Second})
			done <- err
		}()
		return done
	}
	waits := func(what string, done <-chan error) {
		t.Helper()
		select {
		case err := <-done:
			t.Fatalf("%s: did not wait: %v", what, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
	toCart := dial(cart)
	waits("cart", toCart)
	b.capture(cart)
	if err := <-toCart; err != nil {
		t.Errorf("once it is captured: %v", err)
	}
	toGone := dial(gone)
	waits("gone", toGone)
	close(b.settling)
	if err := <-toGone; !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("once all are captured: %v, want no route to host", err)
	}
}

// What cannot be read is named to whoever runs the node, until it can be.
func TestWhatCannotBeReadIsReported(t *testing.T) {
	d := &dataplane{store: workload.NewStore()}
	newer := func(protocol api.TunnelProtocol) workload.Resource {
		return workloadtest.Resource(t, &api.Workload{Uid: "Kubernetes//Pod/shop/cart", Name: "cart", Namespace: "shop", TunnelProtocol: protocol})
	}
	d.store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{newer(77)}})
	d.store.Apply(workload.Delta{Type: workload.AuthorizationType, Upserts: []workload.Resource{{Name: "shop/deny", Version: "1"}}})
	if problems := d.problems(); len(problems) != 1 || !strings.HasPrefix(problems[0], "ConfigurationUnreadable: 2 resources") ||
		!strings.Contains(problems[0], "Kubernetes//Pod/shop/cart") || !strings.Contains(problems[0], "shop/deny") {
		t.Errorf("problems %q", problems)
	}
	d.store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{newer(api.TunnelProtocol_NONE)}})
	d.store.Apply(workload.Delta{Type: workload.AuthorizationType, Removed: []string{"shop/deny"}})
	if problems := d.problems(); len(problems) > 0 {
		t.Errorf("problems %q", problems)
	}
}

func (b *bed) capture(pod *netnstest.Pod) pods.Running {
	b.t.Helper()
	running, err := b.Start(b.t.Context(), b.target(pod))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := running.Close(); err != nil && !errors.Is(err, os.ErrNotExist) {
			b.t.Logf("close: %v", err)
		}
	})
	return running
}

// publish is what the controller tells of a captured pod.
func (b *bed) publish(pod *netnstest.Pod, protocol api.TunnelProtocol) {
	b.t.Helper()
	workloadtest.Apply(b.t, b.store, &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", pod.Name), Name: pod.Name, Namespace: "shop", ServiceAccount: pod.Name,
		TrustDomain: "cluster.local", Node: pod.Node.Name, ClusterId: "Kubernetes",
		Addresses: workloadtest.Addrs(pod.IPv4.String(), pod.IPv6.String()), TunnelProtocol: protocol,
	})
}

// transports lists how live connections are carried, as both of their ends record it.
func (b *bed) transports() string {
	var all []string
	for _, c := range b.conns.Live() {
		all = append(all, string(c.Direction)+" "+string(c.Transport))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func (b *bed) wantTransports(want string) {
	b.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); b.transports() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("live connections: %q, want %q", b.transports(), want)
		}
	}
}

func mustDial(t *testing.T, from *netnstest.App, to netip.Addr) *netnstest.AppConn {
	t.Helper()
	return mustDialPort(t, from, to, 8080)
}

func mustDialPort(t *testing.T, from *netnstest.App, to netip.Addr, port uint16) *netnstest.AppConn {
	t.Helper()
	conn, err := from.Dial(netip.AddrPortFrom(to, port))
	if err != nil {
		t.Fatal(err)
	}
	mustEcho(t, conn)
	return conn
}

func mustEcho(t *testing.T, conn *netnstest.AppConn) {
	t.Helper()
	if err := conn.Echo("hello"); err != nil {
		t.Fatal(err)
	}
}

func TestAPodsWayIntoTheMeshAndOut(t *testing.T) {
	b := newBed(t)
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	server, client := cart.Start(), web.Start()
	server.Listen("[::]:8080")
	before := mustDial(t, client, cart.IPv4)

	runningWeb, runningCart := b.capture(web), b.capture(cart)
	b.publish(web, api.TunnelProtocol_HBONE)
	b.publish(cart, api.TunnelProtocol_HBONE)
	for _, to := range []netip.Addr{cart.IPv4, cart.IPv6} {
		conn := mustDial(t, client, to)
		if conn.Peer.Remote.Addr() != web.IPv4 && conn.Peer.Remote.Addr() != web.IPv6 {
			t.Errorf("the server sees %s", conn.Peer.Remote)
		}
		b.wantTransports("inbound hbone, outbound hbone")
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		b.wantTransports("")
	}
	mustEcho(t, before)

	// Out of it: first the controller's word, then the release.
	tunnelled := mustDial(t, client, cart.IPv4)
	b.publish(web, api.TunnelProtocol_NONE)
	b.publish(cart, api.TunnelProtocol_NONE)
	for _, running := range []pods.Running{runningCart, runningWeb} {
		if err := running.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	direct := mustDial(t, client, cart.IPv4)
	b.wantTransports("inbound hbone, outbound hbone") // the old one, alone
	mustEcho(t, before)
	mustEcho(t, tunnelled)
	mustEcho(t, direct)
	if pinned := b.Pinned(); len(pinned) > 0 {
		t.Errorf("pinned: %q", pinned)
	}
	// And in again, while the old connection still lives.
	b.capture(web)
	b.capture(cart)
	b.publish(cart, api.TunnelProtocol_HBONE)
	again := mustDial(t, client, cart.IPv4)
	mustEcho(t, again)
	mustEcho(t, tunnelled)
	b.wantTransports("inbound hbone, inbound hbone, outbound hbone, outbound hbone")
}

func TestPodsOfOneNodeGoTheShortWay(t *testing.T) {
	b := newBed(t)
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("a").Pod("cart")
	server, client := cart.Start(), web.Start()
	server.Listen("[::]:8080")
	runningCart := b.capture(cart)
	b.capture(web)
	b.publish(web, api.TunnelProtocol_HBONE)
	b.publish(cart, api.TunnelProtocol_HBONE)
	conn := mustDial(t, client, cart.IPv4)
	b.wantTransports("inbound local, outbound local")

	// Its sandbox is gone: what is left is cut, and nobody is sent there any more.
	if err := runningCart.Close(); err != nil {
		t.Error(err)
	}
	if err := conn.Echo("too late"); err == nil {
		t.Error("a connection outlived the capture of a pod that is gone")
	}
	b.wantTransports("")
	if conn, err := client.Dial(netip.AddrPortFrom(cart.IPv4, 8080)); err == nil {
		t.Errorf("connected to a pod of this node that is not captured: %+v", conn)
	}
}

func TestTheNextProcessTakesOver(t *testing.T) {
	b := newBed(t)
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	server, client := cart.Start(), web.Start()
	server.Listen("[::]:8080")
	first := []pods.Running{b.capture(web), b.capture(cart)}
	b.publish(web, api.TunnelProtocol_HBONE)
	b.publish(cart, api.TunnelProtocol_HBONE)
	open := mustDial(t, client, cart.IPv4)

	// The process ends: what is open may end in its own time, nothing new begins,
	// and nothing goes past the tunnel.
	ctx, cut := context.WithCancel(t.Context())
	var draining sync.WaitGroup
	for _, running := range first {
		draining.Go(func() { running.Drain(ctx) })
	}
	refused := netip.AddrPortFrom(cart.IPv4, 8080)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := client.DialWith(refused, netnstest.DialOptions{Timeout: 300 * time.Millisecond})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break // dropped: the sender would repeat it
		}
		if time.Now().After(deadline) {
			t.Fatalf("while draining: %+v, %v", conn, err)
		}
	}
	mustEcho(t, open)
	cut()
	draining.Wait()
	if err := open.Echo("too late"); err == nil {
		t.Error("a connection outlived the process that carried it")
	}
	if err := b.node.close(); err != nil {
		t.Error(err)
	}

	b.startProcess()
	if pinned := strings.Join(b.Pinned(), " "); pinned != "uid-cart uid-web" {
		t.Errorf("pinned: %s", pinned)
	}
	b.capture(web)
	b.capture(cart)
	b.publish(web, api.TunnelProtocol_HBONE)
	b.publish(cart, api.TunnelProtocol_HBONE)
	mustDial(t, client, cart.IPv4)
	b.wantTransports("inbound hbone, outbound hbone")
}

func TestWhatCannotBeCapturedSaysWhy(t *testing.T) {
	b := newBed(t)
	web, other := b.network.Node("a").Pod("web"), b.network.Node("a").Pod("other")
	mismatched := b.target(web)
	mismatched.Sandbox.IPs = []netip.Addr{other.IPv4}
	replaced := b.target(web)
	replaced.Sandbox.Inode++
	missing := b.target(web)
	missing.Sandbox.Path = "/run/netns/gone"
	host := b.target(web)
	host.Sandbox.Path = b.network.Node("a").Path()
	host.Sandbox.Inode, _ = podNamespaces{}.Inode(host.Sandbox.Path)
	nameless := b.target(web)
	nameless.Namespace = ""
	for code, target := range map[string]pods.Target{
		"AddressMismatch": mismatched, "NetNSReplaced": replaced, "NetNSUnreadable": missing, "HostNetNS": host, "IdentityInvalid": nameless,
	} {
		_, err := b.Start(t.Context(), target)
		coded, ok := errors.AsType[pods.Coded](err)
		if !ok || coded.Code() != code {
			t.Errorf("%v, want code %s", err, code)
		}
	}
	// On a node without what redirection needs, every pod says so.
	b.node = newNode(func() (*redirect.Redirect, error) {
		return redirect.Open(redirect.Config{PinDir: t.TempDir(), CgroupPath: netnstest.Cgroup(), HostNetNS: web.Path(), Logger: slog.New(slog.DiscardHandler)})
	}, slog.New(slog.DiscardHandler))
	if b.node.try() {
		t.Fatal("opened without a BPF file system")
	}
	_, err := b.Start(t.Context(), b.target(web))
	if coded, ok := errors.AsType[pods.Coded](err); !ok || coded.Code() != "BPFFSMissing" {
		t.Errorf("%v, want code BPFFSMissing", err)
	}
	if problems := b.node.problems(); len(problems) != 1 || !strings.HasPrefix(problems[0], "BPFFSMissing: ") {
		t.Errorf("problems %q", problems)
	}
}
