package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// told is what was counted of a pod, of one destination, since it was asked for last.
func (n *testNode) told(t testing.TB, pod *netnstest.Pod, to netip.Addr) (packets uint64, of []bpf.Tried) {
	t.Helper()
	all, err := n.TakeTried(func(uid string) bool { return uid == podOf(t, pod).UID })
	if err != nil {
		t.Fatal(err)
	}
	if len(all) > 1 || all[podOf(t, pod).UID].Rest > 0 {
		t.Errorf("told %+v", all)
	}
	for _, some := range all[podOf(t, pod).UID].Apart {
		if some.Destination.Addr() == to {
			packets += some.Packets
			of = append(of, some)
		}
	}
	return packets, of
}

// What a policy on trial would drop leaves, by whatever socket, and each packet of it is told once; where another policy drops it,
// or where the node's end of a link is the only one that sees it, too.
func TestTrialsTellOfEveryPacket(t *testing.T) {
	for _, way := range []string{"tcx", "clsact"} {
		t.Run(way, func(t *testing.T) { testTrials(t, way == "clsact") })
	}
}

func testTrials(t *testing.T, withoutTCX bool) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	a.withoutTCX = withoutTCX
	pod, outside := a.Pod("pod"), network.Node("b").Pod("outside")
	app, server := pod.Start(), outside.Start()
	server.Listen("[::]:8080")
	server.ListenUDP("[::]:443")
	for _, ip := range []netip.Addr{outside.IPv4, outside.IPv6} { // so that the pod knows its router
		mustDial(t, app, netip.AddrPortFrom(ip, appPort))
	}
	r := a.captureDNS(t, pod)
	port := pod.SniffPort()
	set := func(denied, tried bool) {
		t.Helper()
		for _, err := range []error{r.SetEgress(denied), r.SetTried(tried)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Millisecond) // what is under way
		port.Take()
		a.told(t, pod, outside.IPv4)
	}
	for _, leaver := range leavers {
		for _, ip := range []netip.Addr{outside.IPv4, outside.IPv6} {
			name := fmt.Sprintf("%s to %s", leaver.name, ip)
			to := netip.AddrPortFrom(ip, leaver.port)
			// sent sends one, and returns how many packets of it left and were told.
			sent := func() (left int, told uint64, of []bpf.Tried) {
				t.Helper()
				_ = leaver.send(pod, to) // it may be told that it failed
				time.Sleep(20 * time.Millisecond)
				told, of = a.told(t, pod, ip)
				return toward(port.Take(), ip), told, of
			}
			set(false, true)
			left, told, of := sent()
			if left == 0 || told != uint64(left) {
				t.Errorf("%s, on trial: %d packets left, of %d was told: %+v", name, left, told, of)
			}
			// Besides, the pod may tell who answers that it does not listen.
			if want := protocolOf(leaver.name, ip); !slices.ContainsFunc(of, func(some bpf.Tried) bool {
				return some.Protocol == want && (some.Destination.Port() == 0 || some.Destination.Port() == leaver.port)
			}) {
				t.Errorf("%s, on trial: told %+v, want protocol %d", name, of, want)
			}
			set(true, true)
			if left, again, _ := sent(); left != 0 || again == 0 || again > told {
				t.Errorf("%s, on trial where it is denied: %d packets left, of %d was told", name, left, again)
			}
			set(true, false)
			if left, told, _ := sent(); left != 0 || told != 0 {
				t.Errorf("%s, no longer on trial: %d packets left, of %d was told", name, left, told)
			}
			every := map[netip.Prefix]bpf.Allowance{netip.PrefixFrom(ip, ip.BitLen()): {Every: true}}
			if err := r.AllowRanges(bpf.OnTrial, every); err != nil {
				t.Fatal(err)
			}
			set(false, true)
			disguise := leaver.name == "another protocol" || leaver.name == "TCP by a raw socket" // excepted by nothing
			if left, told, _ := sent(); left == 0 || (told == 0) == disguise {
				t.Errorf("%s, on trial with an exception: %d packets left, of %d was told", name, left, told)
			}
			if err := r.AllowRanges(bpf.OnTrial, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func protocolOf(leaver string, ip netip.Addr) uint8 {
	switch leaver {
	case "UDP-Lite":
		return unix.IPPROTO_UDPLITE
	case "another protocol":
		return unix.IPPROTO_GRE
	case "TCP by a raw socket":
		return unix.IPPROTO_TCP
	case "ICMP", "ICMP as of a neighbour":
		if ip.Is6() {
			return unix.IPPROTO_ICMPV6
		}
		return unix.IPPROTO_ICMP
	}
	return unix.IPPROTO_UDP
}

// What goes past the pod's end of the link is told by the node's.
func TestTrialsTellOfWhatGoesPastThePodsEnd(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, outside := a.Pod("pod"), network.Node("b").Pod("outside")
	outside.Start().Listen("[::]:8080")
	mustDial(t, pod.Start(), netip.AddrPortFrom(outside.IPv4, appPort))
	if err := a.capture(t, pod).SetTried(true); err != nil {
		t.Fatal(err)
	}
	port := pod.SniffPort()
	if err := frameSender(frame{bypass: true})(pod, netip.AddrPortFrom(outside.IPv4, appPort)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it leaves", func() bool { return toward(port.Take(), outside.IPv4) > 0 })
	eventually(t, "it is told", func() bool {
		packets, _ := a.told(t, pod, outside.IPv4)
		return packets > 0
	})
}

// A policy on trial takes nothing from strict mode: what that drops stays dropped, and is not told as the policy's.
func TestTrialsLeaveStrictModeAlone(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	other := b.Pod("other")
	other.Start().Listen("[::]:8080")
	b.capture(t, other) // what ztunnel sends goes to its tunnel port
	for i, attack := range attacks {
		if attack.beyond || attack.name == "destination options" {
			continue // is not seen where this looks, or IPv6's alone
		}
		t.Run(attack.name, func(t *testing.T) {
			pod := a.Pod(fmt.Sprint("pod", i))
			mustDial(t, pod.Start(), netip.AddrPortFrom(other.IPv4, appPort))
			u := a.capture(t, pod)
			for _, err := range []error{u.SetStrict(true, 0), u.SetTried(true)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			port := pod.SniffPort()
			for still := true; still; { // what is under way
				time.Sleep(20 * time.Millisecond)
				still = plaintext(port.Take()) > 0
			}
			before := dropped(verdicts(t, a))
			_ = attack.send(pod, netip.AddrPortFrom(other.IPv4, appPort))
			eventually(t, "it is dropped", func() bool { return dropped(verdicts(t, a)) > before })
			time.Sleep(20 * time.Millisecond)
			if n := plaintext(port.Take()); n != 0 {
				t.Errorf("%d frames left", n)
			}
			if packets, of := a.told(t, pod, other.IPv4); packets != 0 {
				t.Errorf("told %+v", of)
			}
		})
	}
}

// A trial goes on without a process, what it counted is there for the next, and what is asked of DNS servers is none of it.
func TestTrialsOutliveTheProcess(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, outside := a.Pod("pod"), network.Node("b").Pod("outside")
	outside.Start().ListenUDP("[::]:443")
	app := pod.Start()
	to := netip.AddrPortFrom(outside.IPv4, quicPort)
	ask := func(when string) {
		t.Helper()
		if _, err := app.AskUDP(to); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	if err := a.captureDNS(t, pod).SetTried(true); err != nil {
		t.Fatal(err)
	}
	if _, err := app.AskUDP(netip.AddrPortFrom(noServer4, dnsPort)); err != nil {
		t.Error(err)
	}
	if packets, of := a.told(t, pod, noServer4); packets != 0 {
		t.Errorf("of DNS: %+v", of)
	}
	ask("on trial")
	a.Close()
	ask("without a process")
	a.reopen(t)
	ask("before the pod is taken over")
	r := a.captureDNS(t, pod)
	ask("taken over")
	if packets, of := a.told(t, pod, outside.IPv4); packets != 4 || len(of) != 1 || of[0].Source != pod.IPv4 || of[0].Destination != to {
		t.Errorf("told %+v", of)
	}
	if err := r.SetTried(false); err != nil {
		t.Fatal(err)
	}
	ask("no longer on trial")
	if packets, of := a.told(t, pod, outside.IPv4); packets != 0 {
		t.Errorf("no longer on trial: told %+v", of)
	}
}
