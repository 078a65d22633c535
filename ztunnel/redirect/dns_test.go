package redirect

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// noServer has nothing at it: who gets an answer got ztunnel's.
var noServer4, noServer6 = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd96::a")

// A resolver is the part of a ztunnel that answers what a pod asks DNS servers.
type resolver struct {
	*Capture
	mu    sync.Mutex
	asked []netip.AddrPort // whom the pod asked
}

// captureDNS enrolls a pod with its DNS, and answers what it asks with what a server would see.
func (n *testNode) captureDNS(t testing.TB, pod *netnstest.Pod) *resolver {
	t.Helper()
	p := podOf(t, pod)
	p.DNS = true
	c, err := n.Enroll(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return serveDNS(t, c)
}

func serveDNS(t testing.TB, c *Capture) *resolver {
	r := &resolver{Capture: c}
	var running sync.WaitGroup
	running.Go(r.datagrams)
	running.Go(r.streams)
	t.Cleanup(running.Wait)
	carryUntilEnd(t, c)
	return r
}

func (r *resolver) datagrams() {
	question := make([]byte, 1500)
	for {
		_, client, server, err := r.DNS.Read(question)
		if err != nil {
			return
		}
		r.note(server)
		answer, _ := json.Marshal(netnstest.Sight{Local: server, Remote: client})
		r.DNS.Write(answer, client, server)
	}
}

func (r *resolver) streams() {
	for {
		conn, err := r.DNSStream.AcceptTCP()
		if err != nil {
			return
		}
		r.note(address(conn.LocalAddr()))
		json.NewEncoder(conn).Encode(netnstest.Sight{Local: address(conn.LocalAddr()), Remote: address(conn.RemoteAddr())})
		conn.Close()
	}
}

func (r *resolver) note(server netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, server)
}

// take returns whom the pod asked since the last call.
func (r *resolver) take() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	return asked
}

// What a pod asks in a burst waits for a ztunnel that has not got round to it.
func TestBurstsOfQuestionsWait(t *testing.T) {
	a := openNode(t, netnstest.New(t, "a").Node("a"))
	pod := podOf(t, a.Pod("pod"))
	pod.DNS = true
	c, err := a.Enroll(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	carryUntilEnd(t, c)
	const burst = 1000
	err = pod.NetNS.Do(func() error {
		app, err := net.Dial("udp", netip.AddrPortFrom(noServer4, dnsPort).String())
		if err != nil {
			return err
		}
		defer app.Close()
		for range burst {
			if _, err := app.Write(make([]byte, 64)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c.DNS.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for n := range burst {
		if _, _, _, err := c.DNS.Read(make([]byte, 100)); err != nil {
			t.Fatalf("%d of %d questions came: %v", n, burst, err)
		}
	}
	c.DNS.conn.SetReadDeadline(time.Time{})
}

// Whatever server a pod asks, and however, ztunnel answers, in that server's name.
func TestQuestionsToAnyServerAreCaptured(t *testing.T) {
	for _, way := range []string{"tcx", "clsact"} {
		t.Run(way, func(t *testing.T) {
			network := netnstest.New(t, "a", "b")
			a := openNode(t, network.Node("a"))
			a.withoutTCX = way == "clsact"
			pod, far := a.Pod("pod"), network.Node("b").Pod("far")
			server := far.Start()
			server.ListenUDP("[::]:53")
			server.Listen("[::]:53")
			app := pod.Start()
			r := a.captureDNS(t, pod)
			for _, to := range []struct {
				name       string
				server, of netip.Addr
			}{
				{"a server, IPv4", far.IPv4, pod.IPv4},
				{"a server, IPv6", far.IPv6, pod.IPv6},
				{"none, IPv4", noServer4, pod.IPv4},
				{"none, IPv6", noServer6, pod.IPv6},
			} {
				ways := map[string]netnstest.DialOptions{
					"connected":        {},
					"unconnected":      {Unconnected: true},
					"bound to device":  {Device: "eth0"},
					"bound to address": {Source: to.of, Unconnected: true},
					"with a mark":      {Mark: 0x77},
				}
				if to.server.Is4() {
					ways["mapped"] = netnstest.DialOptions{Mapped: true}
				}
				dst := netip.AddrPortFrom(to.server, dnsPort)
				for name, options := range ways {
					sight, err := app.AskUDPWith(dst, options)
					if err != nil || sight.Local != dst || sight.Remote.Addr() != to.of {
						t.Errorf("%s, %s: %v, %v", to.name, name, sight, err)
					}
					if asked := r.take(); len(asked) != 1 || asked[0] != dst {
						t.Errorf("%s, %s: ztunnel was asked %v", to.name, name, asked)
					}
				}
				conn, err := app.Dial(dst)
				if err != nil || conn.Remote != dst || conn.Peer.Remote.Addr() != to.of {
					t.Errorf("%s, TCP: %v, %v", to.name, conn, err)
				}
				if asked := r.take(); len(asked) != 1 || asked[0] != dst {
					t.Errorf("%s, TCP: ztunnel was asked %v", to.name, asked)
				}
			}
		})
	}
}

// What is none of a pod's questions to other hosts' DNS servers goes its way.
func TestOtherDatagramsAreNotCaptured(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, far := a.Pod("pod"), network.Node("b").Pod("far")
	app, other := pod.Start(), far.Start()
	app.ListenUDP("[::]:53")
	other.ListenUDP("[::]:5353")
	r := a.captureDNS(t, pod)
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(far.IPv4, 5353), netip.AddrPortFrom(far.IPv6, 5353),
		netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("[::1]:53"),
		netip.AddrPortFrom(pod.IPv4, 53), netip.AddrPortFrom(pod.IPv6, 53),
	} {
		if _, err := app.AskUDP(to); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
	// A captured DNS server is asked, and answers.
	for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
		if _, err := other.AskUDP(netip.AddrPortFrom(ip, 53)); err != nil {
			t.Errorf("pod as a server at %s: %v", ip, err)
		}
		own := netip.AddrPortFrom(ip, r.ports[bpf.DNS])
		if _, err := other.AskUDP(own); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("ztunnel's own port at %s: %v", own, err)
		}
		if _, err := app.AskUDP(own); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("ztunnel's own port, from the pod itself, at %s: %v", own, err)
		}
	}
	if asked := r.take(); len(asked) > 0 {
		t.Errorf("ztunnel was asked %v", asked)
	}
}

// A pod whose DNS is not captured asks its servers itself, and so does one whose DNS was.
func TestQuestionsOfOthersAreLeftAlone(t *testing.T) {
	for _, way := range []string{"tcx", "clsact"} {
		t.Run(way, func(t *testing.T) {
			network := netnstest.New(t, "a", "b")
			a := openNode(t, network.Node("a"))
			a.withoutTCX = way == "clsact"
			pod, far := a.Pod("pod"), network.Node("b").Pod("far")
			far.Start().ListenUDP("[::]:53")
			app := pod.Start()
			to := netip.AddrPortFrom(far.IPv4, dnsPort)
			without, err := a.Enroll(t.Context(), podOf(t, pod))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := app.AskUDP(to); err != nil {
				t.Errorf("not captured: %v", err)
			}
			if err := without.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			r := a.captureDNS(t, pod)
			if _, err := app.AskUDP(to); err != nil || len(r.take()) != 1 {
				t.Errorf("captured: %v", err)
			}
			if err := r.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := app.AskUDP(to); err != nil || len(r.take()) != 0 {
				t.Errorf("released: %v", err)
			}
		})
	}
}

// Without a ztunnel questions wait, as connections do: nobody is told that there is no server, and none is asked. Whoever comes
// next answers, or lets go.
func TestQuestionsWaitForTheNextProcess(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, far := a.Pod("pod"), network.Node("b").Pod("far")
	far.Start().ListenUDP("[::]:53")
	app := pod.Start()
	to := netip.AddrPortFrom(far.IPv4, dnsPort)
	a.captureDNS(t, pod)
	a.Close()
	unanswered := func(when string) {
		t.Helper()
		for _, ip := range []netip.Addr{far.IPv4, far.IPv6} {
			_, err := app.AskUDPWith(netip.AddrPortFrom(ip, dnsPort), netnstest.DialOptions{Timeout: 150 * time.Millisecond})
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s, %s: %v", when, ip, err)
			}
		}
	}
	unanswered("without a process")
	a.reopen(t)
	unanswered("before the pod is taken over")
	r := a.captureDNS(t, pod)
	if _, err := app.AskUDP(to); err != nil || len(r.take()) != 1 {
		t.Errorf("taken over: %v", err)
	}

	a.Close()
	a.reopen(t)
	without, err := a.Enroll(t.Context(), podOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.AskUDP(to); err != nil {
		t.Errorf("taken over without DNS: %v", err)
	}
	entries, err := os.ReadDir(a.pins.pod(pod.Name))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), dnsPin) {
			t.Errorf("%s is still pinned", e.Name())
		}
	}
	if err := without.Release(t.Context()); err != nil {
		t.Fatal(err)
	}

	a.captureDNS(t, pod)
	a.Close()
	a.reopen(t)
	if err := a.Forget(pod.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := app.AskUDP(to); err != nil {
		t.Errorf("forgotten: %v", err)
	}

	a.captureDNS(t, pod)
	if err := Remove(a.config); err != nil {
		t.Fatal(err)
	}
	if _, err := app.AskUDP(to); err != nil {
		t.Errorf("after everything was removed: %v", err)
	}
}

// A device that the pod gets later is no way round.
func TestLaterDevicesAreCaptured(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, far := a.Pod("pod"), network.Node("b").Pod("far")
	app := pod.Start()
	r := a.captureDNS(t, pod)
	if err := pod.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "second"}, PeerName: "third"}); err != nil {
			return err
		}
		second, err := netlink.LinkByName("second")
		if err != nil {
			return err
		}
		third, err := netlink.LinkByName("third")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetUp(second), netlink.LinkSetUp(third)); err != nil {
			return err
		}
		if err := netlink.NeighAdd(&netlink.Neigh{ // where nobody answers
			LinkIndex: second.Attrs().Index, State: netlink.NUD_PERMANENT, IP: far.IPv4.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 99},
		}); err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{
			LinkIndex: second.Attrs().Index, Src: pod.IPv4.AsSlice(), Dst: &net.IPNet{IP: far.IPv4.AsSlice(), Mask: net.CIDRMask(32, 32)},
		})
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is captured there too", func() bool {
		_, err := app.AskUDPWith(netip.AddrPortFrom(far.IPv4, dnsPort), netnstest.DialOptions{Timeout: 50 * time.Millisecond})
		return err == nil && len(r.take()) > 0
	})
}

// What a pod takes off its devices, where it can, is there again.
func TestFilterThatWasTakenOffIsPutBack(t *testing.T) {
	network := netnstest.New(t, "a")
	a := openNode(t, network.Node("a"))
	a.withoutTCX = true
	pod := a.Pod("pod")
	app := pod.Start()
	r := a.captureDNS(t, pod)
	to := netip.AddrPortFrom(noServer4, dnsPort)
	if _, err := app.AskUDP(to); err != nil {
		t.Fatal(err)
	}
	r.take()
	if err := pod.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.QdiscDel(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
			QdiscType:  "clsact",
		})
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "questions are captured again", func() bool {
		_, err := app.AskUDPWith(to, netnstest.DialOptions{Timeout: 50 * time.Millisecond})
		return err == nil && len(r.take()) > 0
	})
}

// A question in pieces is nobody's.
func TestQuestionInPiecesIsDropped(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, far := a.Pod("pod"), network.Node("b").Pod("far")
	far.Start().ListenUDP("[::]:53")
	r := a.captureDNS(t, pod)
	if err := pod.Do(func() error {
		conn, err := net.Dial("udp", netip.AddrPortFrom(far.IPv4, dnsPort).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(make([]byte, 4000)); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1500)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("answered: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	verdicts, err := a.Verdicts()
	if err != nil || verdicts["dns_dropped_fragment"] == 0 || len(r.take()) > 0 {
		t.Errorf("verdicts %v, %v", verdicts, err)
	}
}
