package redirect

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// attached counts what of a node stays without a link: its programs at the cgroup, and guards at the pods' links.
func attached(t *testing.T, node *netnstest.Node, pods ...*netnstest.Pod) (hooks, guards int) {
	t.Helper()
	for _, h := range nodeHooks(netnstest.Cgroup()) {
		err := h.do(func(fd int) error {
			found, err := h.find(fd, h.name, 0)
			closeAll(found)
			hooks += len(found)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	namespaces := []*netnstest.NetNS{node.NetNS}
	for _, p := range pods {
		namespaces = append(namespaces, p.NetNS)
	}
	for _, n := range namespaces {
		netns := openNetNS(t, n.Path())
		devices, err := devicesOf(netns)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range devices {
			for _, ingress := range []bool{false, true} {
				guards += (site{netns: netns, index: d.Attrs().Index, ingress: ingress}).has(t, bpf.GuardName)
			}
		}
	}
	return hooks, guards
}

const (
	hooksOfNode  = 3
	guardsOfAPod = 2 // both ends of its link
)

func bpffs(config Config) string { return filepath.Dir(config.PinDir) }

// The BPF file system is lost, and the process is killed: a strict pod sends nothing in plaintext, a permissive one is not let go
// either, and the next process takes over what is attached.
func TestLostPinsDetachNothing(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	b := openNode(t, network.Node("b"))
	node := network.Node("a")
	strict, permissive, other := node.Pod("strict"), node.Pod("permissive"), b.Pod("other")
	other.Start().Listen("[::]:8080")
	outside := network.Node("b").Pod("outside").Start()
	strict.Start().Listen("[::]:8080")
	config := configOf(t, node)
	a := &testNode{Node: node, config: config}
	a.reopen(t)
	t.Cleanup(func() {
		a.Close()
		if err := Remove(a.config); err != nil {
			t.Error(err)
		}
	})
	u := a.capture(t, strict)
	if err := u.SetStrict(true, 0); err != nil {
		t.Fatal(err)
	}
	a.capture(t, permissive)
	b.capture(t, other)
	apps := map[*netnstest.Pod]*netnstest.App{strict: strict.Start(), permissive: permissive.Start()}
	for _, app := range apps {
		mustDial(t, app, netip.AddrPortFrom(other.IPv4, appPort))
	}

	// The pins go with their file system, and the links that the process holds with it: Close is as much as its end does.
	if err := unix.Unmount(bpffs(config), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	ports := []*netnstest.Sniffer{strict.SniffPort(), permissive.SniffPort()}
	for pod, app := range apps {
		for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
			for _, options := range []netnstest.DialOptions{{}, {MPTCP: true}, {Device: "eth0"}} {
				options.Timeout = refusalTimeout
				if _, err := app.DialWith(netip.AddrPortFrom(ip, appPort), options); !isRefusal(err) && !errors.Is(err, unix.EPERM) {
					t.Errorf("%s to %s, %+v: %v, want a refusal", pod.Name, ip, options, err)
				}
			}
		}
	}
	for _, ip := range []netip.Addr{strict.IPv4, strict.IPv6} {
		if _, err := outside.DialWith(netip.AddrPortFrom(ip, appPort), netnstest.DialOptions{Timeout: refusalTimeout}); !isRefusal(err) {
			t.Errorf("plaintext to the strict pod at %s: %v, want a refusal", ip, err)
		}
	}
	for _, attack := range []attack{{send: sendRaw}, {send: frameSender(frame{})}, {send: frameSender(frame{fragment: true})}} {
		_ = attack.send(strict, netip.AddrPortFrom(other.IPv4, appPort))
	}
	for _, port := range ports {
		if n := plaintext(port.Take()); n != 0 {
			t.Errorf("%d frames in plaintext", n)
		}
	}

	// A new file system, a new process.
	if err := unix.Mount("bpf", bpffs(config), "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	a.reopen(t)
	if got := a.Adopted(); !slices.Equal(got, []string{"permissive", "strict"}) {
		t.Errorf("adopted %v", got)
	}
	u = a.capture(t, strict)
	if is, err := u.Strict(); err != nil || !is {
		t.Errorf("strict: %v, %v", is, err)
	}
	a.capture(t, permissive)
	for _, app := range apps {
		mustDial(t, app, netip.AddrPortFrom(other.IPv4, appPort))
	}
	hooks, guards := attached(t, node, strict, permissive)
	if hooks != 2*hooksOfNode || guards != 2*guardsOfAPod { // of both nodes, which share the cgroup
		t.Errorf("%d hooks and %d guards are attached", hooks, guards)
	}
}

// The file system is replaced while the process lives: what is pinned is pinned again, and enforces when the process ends.
func TestPinsAreMadeAgain(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	a.Redirect.config.MountBPFFS = true
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	far := other.Start()
	pod.Start().Listen("[::]:8080")
	a.capture(t, pod)
	if err := unix.Unmount(bpffs(a.config), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(a.pins.pod(pod.Name), steerPin)
	eventually(t, "it is pinned again", func() bool { _, err := os.Stat(pin); return err == nil })
	eventually(t, "it is a problem", func() bool {
		return slices.ContainsFunc(a.Problems(), func(p *Problem) bool { return p.Code == PinsLost })
	})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := far.DialWith(netip.AddrPortFrom(pod.IPv4, appPort), netnstest.DialOptions{Timeout: refusalTimeout}); !isRefusal(err) {
		t.Errorf("%v, want a refusal", err)
	}
	a.reopen(t)
	if got := a.Adopted(); !slices.Equal(got, []string{"pod"}) {
		t.Errorf("adopted %v", got)
	}
	a.capture(t, pod)
	mustDial(t, far, netip.AddrPortFrom(pod.IPv4, appPort))
}

// A program of the node that somebody takes off is there again.
func TestHooksAreThereAgain(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	for _, h := range nodeHooks(netnstest.Cgroup()) {
		if err := h.clear(h.name, a.node.ID()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the hooks are there again", func() bool { hooks, _ := attached(t, a.Node); return hooks == hooksOfNode })
	eventually(t, "it is a problem", func() bool {
		return slices.ContainsFunc(a.Problems(), func(p *Problem) bool { return p.Code == HookRemoved })
	})
}

// However often a process starts, nothing is attached twice; and Remove takes everything off, even if the pins are lost.
func TestNothingIsAttachedTwiceOrLeft(t *testing.T) {
	for _, lost := range []bool{false, true} {
		network := netnstest.New(t, "a")
		node := network.Node("a")
		pod := node.Pod("pod")
		a := &testNode{Node: node, config: configOf(t, node)}
		a.config.NetNSDir = t.TempDir()
		if err := os.Symlink(pod.Path(), filepath.Join(a.config.NetNSDir, "pod")); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			a.reopen(t)
			u := a.capture(t, pod)
			if err := u.SetStrict(true, 0); err != nil {
				t.Fatal(err)
			}
			if hooks, guards := attached(t, node, pod); hooks != hooksOfNode || guards != guardsOfAPod {
				t.Errorf("%d hooks and %d guards are attached", hooks, guards)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if lost {
			if err := unix.Unmount(bpffs(a.config), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("bpf", bpffs(a.config), "bpf", 0, "mode=0700"); err != nil {
				t.Fatal(err)
			}
		}
		if err := Remove(a.config); err != nil {
			t.Fatal(err)
		}
		if hooks, guards := attached(t, node, pod); hooks != 0 || guards != 0 {
			t.Errorf("pins lost %v: %d hooks and %d guards are left", lost, hooks, guards)
		}
		if _, err := os.Stat(a.config.PinDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the folder is there: %v", err)
		}
	}
}
