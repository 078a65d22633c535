package redirect

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

func openNetNS(t testing.TB, path string) *podns.NetNS {
	t.Helper()
	netns, err := podns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Close() })
	return netns
}

// Where it is asked for, a pod that nobody has classified connects to nothing by TCP but itself; it is asked for until it is
// not, whatever becomes of the process. Nobody else is meant.
func TestUnclassifiedPodsAreRefused(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	cgroup := netnstest.AddCgroup(t, "kubepods.slice/pod1")
	a := openNode(t, network.Node("a"))
	unknown, left, captured := a.Pod("unknown"), a.Pod("left"), a.Pod("captured")
	other := network.Node("b").Pod("other")
	server := other.Start()
	server.Listen("[::]:8080")
	server.ListenUDP("[::]:53")
	a.capture(t, captured)
	own := openNetNS(t, "/proc/self/ns/net")
	if classes, err := a.node.Classes(); err != nil || len(classes) != 1 || classes[own.Cookie()] == 0 {
		t.Errorf("classified at the start: %v, %v, want the process's own namespace", classes, err)
	}
	inUnknown := unknown.StartIn(cgroup)
	connects := func(who string, from *netnstest.App, want bool) {
		t.Helper()
		for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
			for _, options := range []netnstest.DialOptions{{}, {MPTCP: true}} {
				_, err := from.DialWith(netip.AddrPortFrom(ip, appPort), options)
				if want && err != nil || !want && !errors.Is(err, unix.EPERM) {
					t.Errorf("%s to %s, %+v: %v, may it: %v", who, ip, options, err, want)
				}
			}
		}
	}
	connects("an unknown pod, nobody asks for it", inUnknown, true)
	if err := a.RefuseUnclassified(true); err != nil {
		t.Fatal(err)
	}
	if err := a.Leave(openNetNS(t, left.Path())); err != nil {
		t.Fatal(err)
	}
	all := func() {
		t.Helper()
		connects("an unknown pod", inUnknown, false)
		connects("a pod that is left alone", left.StartIn(cgroup), true)
		connects("a captured pod", captured.StartIn(cgroup), true)
		connects("a pod of the node's network", a.StartIn(cgroup), true)
		connects("a process of the node", a.Start(), true)
		connects("a CNI plugin", unknown.Start(), true) // in the pod's network, of the node
	}
	all()
	inUnknown.Listen("127.0.0.1:9090")
	mustDial(t, inUnknown, netip.MustParseAddrPort("127.0.0.1:9090"))
	if _, err := inUnknown.AskUDP(netip.AddrPortFrom(other.IPv4, 53)); err != nil {
		t.Errorf("UDP of an unknown pod: %v", err)
	}
	a.Close()
	connects("an unknown pod, without the process", inUnknown, false)
	a.reopen(t)
	a.capture(t, captured)
	all()
	if err := a.ForgetClasses(func(uint64) bool { return false }); err != nil {
		t.Fatal(err)
	}
	connects("a pod that is forgotten", left.StartIn(cgroup), false)
	if err := a.RefuseUnclassified(false); err != nil {
		t.Fatal(err)
	}
	connects("an unknown pod, nobody asks for it any more", inUnknown, true)
}
