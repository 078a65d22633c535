package redirect

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// A ztunnel that is killed leaves its pods refused in both directions; the next one takes them over.
func TestKilledProcessLeavesPodsRefused(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	pod, other := network.Node("a").Pod("pod"), network.Node("b").Pod("other")
	near, far, node := pod.Start(), other.Start(), startKubelet(t, network.Node("a"), netnstest.Cgroup())
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	config := configOf(t, network.Node("a"))
	t.Cleanup(func() { Remove(config) })
	var established []*netnstest.AppConn
	established = append(established, mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort)),
		mustDial(t, far, netip.AddrPortFrom(pod.IPv4, appPort)))

	works := func() {
		t.Helper()
		for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
			mustDial(t, near, netip.AddrPortFrom(ip, appPort))
		}
		for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
			mustDial(t, far, netip.AddrPortFrom(ip, appPort))
		}
	}
	refused := func() {
		t.Helper()
		for _, way := range []struct {
			from *netnstest.App
			to   netip.Addr
		}{{near, other.IPv4}, {near, other.IPv6}, {far, pod.IPv4}, {far, pod.IPv6}} {
			for _, options := range []netnstest.DialOptions{{}, {MPTCP: true}, {Device: "eth0"}} {
				options.Timeout = refusalTimeout
				if _, err := way.from.DialWith(netip.AddrPortFrom(way.to, appPort), options); !isRefusal(err) {
					t.Errorf("to %s, %+v: %v, want a refusal", way.to, options, err)
				}
			}
		}
		mustDial(t, node, netip.AddrPortFrom(pod.IPv4, appPort)) // probes pass
		for _, c := range established {
			if err := c.Echo("still here"); err != nil {
				t.Error(err)
			}
		}
	}
	for range 3 {
		daemon := startDaemon(t, config, pod)
		works()
		carried := mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort))
		daemon.Kill()
		if err := carried.Echo("still here?"); err == nil {
			t.Error("the killed process's connection lives: it was never carried")
		}
		refused()
	}
}

// A refusal is a reset where the kernel can answer, which it cannot under another's IPv4 address: there connect(2) waits, and
// is served if the next process comes in time.
func isRefusal(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrDeadlineExceeded)
}

const refusalTimeout = 200 * time.Millisecond

// After an orderly end too: what was captured stays refused, and a process that opens the node takes stock of it.
func TestRestartAdoptsPods(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	kept, gone, other := a.Pod("kept"), a.Pod("gone"), network.Node("b").Pod("other")
	near, far := kept.Start(), other.Start()
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	gone.Start().Listen("[::]:8080")
	a.capture(t, kept)
	a.capture(t, gone)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	refuses := func(from *netnstest.App, to netip.Addr) {
		t.Helper()
		_, err := from.DialWith(netip.AddrPortFrom(to, appPort), netnstest.DialOptions{Timeout: refusalTimeout})
		if !isRefusal(err) {
			t.Errorf("to %s: %v, want a refusal", to, err)
		}
	}
	refuses(near, other.IPv4)
	refuses(far, kept.IPv6)

	a.reopen(t)
	if got := a.Adopted(); !slices.Equal(got, []string{"gone", "kept"}) {
		t.Errorf("adopted %v", got)
	}
	refuses(near, other.IPv6)
	refuses(far, kept.IPv4)
	refuses(far, gone.IPv4)

	u := a.capture(t, kept)
	if got := a.Adopted(); !slices.Equal(got, []string{"gone"}) {
		t.Errorf("adopted %v", got)
	}
	mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort))
	mustDial(t, far, netip.AddrPortFrom(kept.IPv4, appPort))
	if got := len(u.take()); got != 2 {
		t.Errorf("%d connections were carried, want 2", got)
	}
	refuses(far, gone.IPv4)
	if err := a.Forget("gone"); err != nil {
		t.Error(err)
	}
	mustDial(t, far, netip.AddrPortFrom(gone.IPv4, appPort))
	if got := a.Adopted(); len(got) != 0 {
		t.Errorf("adopted %v", got)
	}
	pods, err := a.node.Pods()
	if err != nil || len(pods) != 2 {
		t.Errorf("addresses of captured pods: %v, %v", pods, err)
	}
	if err := a.Forget("gone"); err != nil {
		t.Errorf("forgotten twice: %v", err)
	}
}

// Two processes may overlap: the later one takes the pods over, and the former neither loses connections nor lets any by.
func TestProcessesOverlap(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	near := pod.Start()
	other.Start().Listen("[::]:8080")
	old := a.capture(t, pod)
	carried := mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort))
	former := a.Redirect
	a.reopen(t)
	expect(t, old, arrival{bpf.Outbound, pod.IPv4, netip.AddrPortFrom(other.IPv4, appPort)})
	mustDial(t, near, netip.AddrPortFrom(other.IPv6, appPort))
	expect(t, old, arrival{bpf.Outbound, pod.IPv6, netip.AddrPortFrom(other.IPv6, appPort)})

	u := a.capture(t, pod)
	mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort))
	expect(t, old)
	expect(t, u, arrival{bpf.Outbound, pod.IPv4, netip.AddrPortFrom(other.IPv4, appPort)})
	if err := former.Close(); err != nil {
		t.Error(err)
	}
	mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort))
	if err := carried.Echo("still here"); err != nil {
		t.Error(err)
	}
}

// A pod whose sandbox was made anew has another namespace: nothing of the old one is left.
func TestPodWithNewNamespace(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	before, after, other := a.Pod("before"), a.Pod("after"), a.Pod("other")
	other.Start().Listen("[::]:8080")
	old := podOf(t, before)
	old.UID = "pod"
	if _, err := a.Enroll(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	a.Close()
	a.reopen(t)
	renewed := podOf(t, after)
	renewed.UID = "pod"
	c, err := a.Enroll(t.Context(), renewed)
	if err != nil {
		t.Fatal(err)
	}
	u := carryUntilEnd(t, c)
	mustDial(t, after.Start(), netip.AddrPortFrom(other.IPv4, appPort))
	if got := len(u.take()); got != 1 {
		t.Errorf("%d connections were carried, want 1", got)
	}
	mustDial(t, before.Start(), netip.AddrPortFrom(other.IPv4, appPort))
	expect(t, u)
	enrolled, err := a.node.Enrolled()
	if err != nil || len(enrolled) != 1 {
		t.Errorf("captured: %v, %v", enrolled, err)
	}
}

// A pod whose namespace ended while no process looked is forgotten like any other.
func TestPodIsGoneAfterRestart(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	pod := a.Pod("pod")
	p := podOf(t, pod)
	if _, err := a.Enroll(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	a.Close()
	p.NetNS.Close()
	pod.Close()
	a.reopen(t)
	if got := a.Adopted(); !slices.Equal(got, []string{"pod"}) {
		t.Errorf("adopted %v", got)
	}
	if err := a.Forget("pod"); err != nil {
		t.Error(err)
	}
	if uids, err := a.pins.uids(); err != nil || len(uids) != 0 {
		t.Errorf("pinned: %v, %v", uids, err)
	}
}

// An address that another pod has by now stays that pod's when the former owner is forgotten.
func TestForgottenPodKeepsNoAddress(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	gone, next := a.Pod("gone"), a.Pod("next")
	a.capture(t, gone)
	a.Close()
	a.reopen(t)
	a.capture(t, next)
	if err := a.node.AddPod(gone.IPv4, podOf(t, next).NetNS.Cookie()); err != nil {
		t.Fatal(err)
	}
	if err := a.Forget("gone"); err != nil {
		t.Error(err)
	}
	pods, err := a.node.Pods()
	if err != nil || pods[gone.IPv4] == 0 || pods[gone.IPv6] != 0 {
		t.Errorf("addresses of captured pods: %v, %v", pods, err)
	}
}

// Pins of another layout enforce until the last pod is captured under this one, and are gone then.
func TestOtherLayoutIsTakenOver(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	first, second, other := a.Pod("first"), a.Pod("second"), a.Pod("other")
	other.Start().Listen("[::]:8080")
	first.Start().Listen("[::]:8080")
	a.capture(t, first)
	a.capture(t, second)
	a.Close()
	former := filepath.Join(a.config.PinDir, "v0")
	if err := os.Rename(string(layoutPins(a.config.PinDir, layout)), former); err != nil {
		t.Fatal(err)
	}
	a.reopen(t)
	if got := a.Adopted(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("adopted %v", got)
	}
	dst := netip.AddrPortFrom(other.IPv4, appPort)
	from := second.Start()
	if _, err := from.DialWith(dst, netnstest.DialOptions{Timeout: refusalTimeout}); !isRefusal(err) {
		t.Errorf("%v, want a refusal", err)
	}
	u := a.capture(t, first)
	mustDial(t, first.Start(), dst)
	expect(t, u, arrival{bpf.Outbound, first.IPv4, dst})
	mustDial(t, other.Start(), netip.AddrPortFrom(first.IPv4, appPort))
	if _, err := from.DialWith(dst, netnstest.DialOptions{Timeout: refusalTimeout}); !isRefusal(err) {
		t.Errorf("%v, want a refusal", err)
	}
	if _, err := os.Stat(former); err != nil {
		t.Errorf("the former pins went with a pod in them: %v", err)
	}
	if err := a.Forget("second"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(former); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the former pins are there: %v", err)
	}
	mustDial(t, from, dst)
}

// Remove is for good: pods, captured or left behind, have plain networking, and the folder is gone.
func TestRemove(t *testing.T) {
	network := netnstest.New(t, "a")
	config := configOf(t, network.Node("a"))
	pod, other := network.Node("a").Pod("pod"), network.Node("a").Pod("other")
	near, far := pod.Start(), other.Start()
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	startDaemon(t, config, pod).Kill()
	if err := Remove(config); err != nil {
		t.Fatal(err)
	}
	mustDial(t, near, netip.AddrPortFrom(other.IPv4, appPort))
	mustDial(t, far, netip.AddrPortFrom(pod.IPv6, appPort))
	if _, err := os.Stat(config.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is there: %v", err)
	}
	if err := Remove(config); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}

// A node's programs pinned at a cgroup that is gone are attached anew.
func TestNodeProgramsAreAttachedAnew(t *testing.T) {
	network := netnstest.New(t, "a")
	config := configOf(t, network.Node("a"))
	t.Cleanup(func() { Remove(config) })
	elsewhere := config
	elsewhere.CgroupPath = filepath.Join(netnstest.Cgroup(), "gone")
	if err := os.Mkdir(elsewhere.CgroupPath, 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := Open(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := os.Remove(elsewhere.CgroupPath); err != nil {
		t.Fatal(err)
	}
	a := &testNode{Node: network.Node("a"), config: config}
	a.reopen(t)
	t.Cleanup(func() { a.Close() })
	pod, other := a.Pod("pod"), a.Pod("other")
	other.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	dst := netip.AddrPortFrom(other.IPv4, appPort)
	mustDial(t, pod.Start(), dst)
	expect(t, u, arrival{bpf.Outbound, pod.IPv4, dst})
}

// Maps of this layout that do not fit are a problem, not a silent loss of what is captured.
func TestUnusablePins(t *testing.T) {
	network := netnstest.New(t, "a")
	config := configOf(t, network.Node("a"))
	p := layoutPins(config.PinDir, layout)
	if err := p.make(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(p.maps(), enrolledMap)); err != nil {
		t.Fatal(err)
	}
	_, err = Open(config)
	var problem *Problem
	if !errors.As(err, &problem) || problem.Code != PinsUnusable {
		t.Errorf("%v, want %s", err, PinsUnusable)
	}
}

// While one process carries connections of a strict pod, the next takes the pod over: what is open lives, what is new comes to the
// next, and nothing is tried in vain. Nor does the first put back what was its own.
func TestHandover(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	first, far := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	pod, other := network.Node("a").Pod("pod"), network.Node("b").Pod("other")
	near, server := pod.Start(), other.Start()
	near.Listen("[::]:8080")
	server.Listen("[::]:8080")
	far.captureStrict(t, other)
	u := first.captureStrict(t, pod)
	dial := func() (all []*netnstest.AppConn) {
		t.Helper()
		for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
			all = append(all, mustDial(t, near, netip.AddrPortFrom(ip, appPort)))
		}
		for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
			all = append(all, mustDial(t, server, netip.AddrPortFrom(ip, appPort)))
		}
		return all
	}
	open := dial()
	u.take()

	next := &testNode{Node: first.Node, config: first.config}
	first.Cede()
	next.reopen(t)
	t.Cleanup(func() { next.Close() })
	v := next.captureStrict(t, pod)
	for range 3 {
		fresh := dial()
		if arrived := v.take(); len(arrived) != len(fresh) {
			t.Errorf("%d connections came to the next process, want %d", len(arrived), len(fresh))
		}
		if late := u.take(); len(late) > 0 {
			t.Errorf("the first process still gets connections: %v", late)
		}
		time.Sleep(guardCheck) // somebody looks after what is attached
	}
	for _, c := range open {
		if err := c.Echo("still here"); err != nil {
			t.Errorf("%s: %v", c.Sight, err)
		}
	}
	if took := next.Problems(); slices.ContainsFunc(took, func(p *Problem) bool { return p.Code == HookRemoved || p.Code == GuardMissing }) {
		t.Errorf("the two processes work against each other: %v", took)
	}
	u.cut()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	dial()
	if err := open[0].Echo("still here?"); err == nil {
		t.Error("a connection lives whose process has ended: it was never carried")
	}
}
