package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// toward counts the frames that go to an address, whatever they carry but ztunnel's tunnels.
func toward(frames [][]byte, to netip.Addr) (n int) {
	for _, f := range frames {
		if len(f) < 14 {
			continue
		}
		ip := f[14:]
		kind := binary.BigEndian.Uint16(f[12:])
		switch {
		case to.Is4() && kind == unix.ETH_P_IP && len(ip) >= ip4Size && netip.AddrFrom4([4]byte(ip[16:20])) == to:
			if ip[9] != unix.IPPROTO_TCP || !isHBONE(ip, int(ip[0]&0xf)*4) {
				n++
			}
		case to.Is6() && kind == unix.ETH_P_IPV6 && len(ip) >= ip6Size && netip.AddrFrom16([16]byte(ip[24:40])) == to:
			if ip[6] != unix.IPPROTO_TCP || !isHBONE(ip, ip6Size) {
				n++
			}
		}
	}
	return n
}

// rawDatagram sends UDP, or another protocol with the same header, by a raw socket.
func rawDatagram(protocol int) func(*netnstest.Pod, netip.AddrPort) error {
	return func(pod *netnstest.Pod, to netip.AddrPort) error {
		return pod.Do(func() error {
			fd, err := unix.Socket(familyOf(to), unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			udp := make([]byte, udpSize+4)
			binary.BigEndian.PutUint16(udp[0:], 40000)
			binary.BigEndian.PutUint16(udp[2:], to.Port())
			binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
			return unix.Sendto(fd, udp, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
		})
	}
}

// sendDatagram sends one of some size, as QUIC does.
func sendDatagram(size int) func(*netnstest.Pod, netip.AddrPort) error {
	return func(pod *netnstest.Pod, to netip.AddrPort) error {
		return pod.Do(func() error {
			conn, err := net.Dial("udp", to.String())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write(make([]byte, size))
			return err
		})
	}
}

// ping sends an echo request; hops of 255 as between neighbours.
func ping(hops int, kind byte) func(*netnstest.Pod, netip.AddrPort) error {
	return func(pod *netnstest.Pod, to netip.AddrPort) error {
		return pod.Do(func() error {
			protocol, level, option := unix.IPPROTO_ICMPV6, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS
			if to.Addr().Is4() {
				protocol, level, option = unix.IPPROTO_ICMP, unix.SOL_IP, unix.IP_TTL
			}
			fd, err := unix.Socket(familyOf(to), unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := setsockopt(fd, level, option, hops); err != nil {
				return err
			}
			echo := make([]byte, 32)
			echo[0] = kind
			if to.Addr().Is4() {
				echo[0] = 8
				binary.BigEndian.PutUint16(echo[2:], fold(sum(0, echo)))
			}
			return unix.Sendto(fd, echo, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
		})
	}
}

// frameOfUDP sends a datagram by a packet socket.
func frameOfUDP(pod *netnstest.Pod, to netip.AddrPort) error {
	return pod.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		gateway, err := gatewayOf(to.Addr())
		if err != nil {
			return err
		}
		from, kind := pod.IPv6, uint16(unix.ETH_P_IPV6)
		if to.Addr().Is4() {
			from, kind = pod.IPv4, unix.ETH_P_IP
		}
		content := append(append([]byte(nil), gateway...), eth0.HardwareAddr...)
		content = append(binary.BigEndian.AppendUint16(content, kind), datagram(netip.AddrPortFrom(from, 40000), to, []byte("quic"))...)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		kind = kind<<8 | kind>>8
		return unix.Sendto(fd, content, 0, &unix.SockaddrLinklayer{Ifindex: eth0.Index, Protocol: kind, Halen: 6, Addr: [8]byte(append(gateway[:6:6], 0, 0))})
	})
}

const (
	quicPort      = 443
	echoRequest6  = 128
	solicitation6 = 135
)

var leavers = []struct {
	name string
	send func(*netnstest.Pod, netip.AddrPort) error
	port uint16
	// always: whatever is excepted for the port of UDP, it does not leave.
	always bool
}{
	{name: "QUIC", send: sendDatagram(1200), port: quicPort},
	{name: "raw socket", send: rawDatagram(unix.IPPROTO_UDP), port: quicPort},
	{name: "packet socket", send: frameOfUDP, port: quicPort},
	{name: "fragments", send: sendDatagram(4000), port: quicPort, always: true},
	{name: "UDP-Lite", send: rawDatagram(unix.IPPROTO_UDPLITE), port: quicPort, always: true},
	{name: "ICMP", send: ping(64, echoRequest6), port: quicPort, always: true},
	{name: "ICMP as of a neighbour", send: ping(255, solicitation6), port: quicPort, always: true},
	{name: "another protocol", send: rawDatagram(unix.IPPROTO_GRE), port: quicPort, always: true},
	{name: "TCP by a raw socket", send: sendRaw, port: quicPort, always: true},
	{name: "DNS in another's name", send: fromElsewhere, port: dnsPort, always: true},
}

// fromElsewhere sends a question under an address that is not the pod's.
func fromElsewhere(pod *netnstest.Pod, to netip.AddrPort) error {
	return pod.Do(func() error {
		family, level, option, from := unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_HDRINCL, netip.MustParseAddr("fd00:1::99")
		if to.Addr().Is4() {
			family, level, option, from = unix.AF_INET, unix.SOL_IP, unix.IP_HDRINCL, netip.MustParseAddr("10.1.0.99")
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := setsockopt(fd, level, option, 1); err != nil {
			return err
		}
		return unix.Sendto(fd, datagram(netip.AddrPortFrom(from, 40000), to, []byte("?")), 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
	})
}

// Nothing but what is excepted leaves a pod whose way out is denied, by whatever socket. Each of these is seen on the node's end
// of the link before, and after.
func TestNothingLeavesWhereItIsDenied(t *testing.T) {
	for _, way := range []string{"tcx", "clsact"} {
		t.Run(way, func(t *testing.T) { testLeavers(t, way == "clsact") })
	}
}

func testLeavers(t *testing.T, withoutTCX bool) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	a.withoutTCX = withoutTCX
	pod, outside := a.Pod("pod"), network.Node("b").Pod("outside")
	app := pod.Start()
	server := outside.Start()
	server.Listen("[::]:8080")
	server.ListenUDP("[::]:443")
	for _, ip := range []netip.Addr{outside.IPv4, outside.IPv6} { // so that the pod knows its router
		mustDial(t, app, netip.AddrPortFrom(ip, appPort))
	}
	r := a.captureDNS(t, pod)
	port := pod.SniffPort()
	set := func(denied bool) {
		t.Helper()
		if err := r.SetEgress(denied); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // what is under way
		port.Take()
	}
	quic := bpf.Allowance{UDP: []bpf.PortRange{{First: quicPort, Last: quicPort}}}
	host := func(ip netip.Addr) netip.Prefix { return netip.PrefixFrom(ip, ip.BitLen()) }
	for _, leaver := range leavers {
		for _, ip := range []netip.Addr{outside.IPv4, outside.IPv6} {
			name := fmt.Sprintf("%s to %s", leaver.name, ip)
			to := netip.AddrPortFrom(ip, leaver.port)
			seen := func(when string) {
				t.Helper()
				if err := leaver.send(pod, to); err != nil {
					t.Errorf("%s, %s: %v", name, when, err)
				}
				eventually(t, fmt.Sprintf("%s, %s, is seen", name, when), func() bool { return toward(port.Take(), ip) > 0 })
			}
			unseen := func(when string) {
				t.Helper()
				before := dropped(verdicts(t, a))
				_ = leaver.send(pod, to) // it may be told that it failed
				eventually(t, fmt.Sprintf("%s, %s, is dropped", name, when), func() bool { return dropped(verdicts(t, a)) > before })
				time.Sleep(5 * time.Millisecond)
				if n := toward(port.Take(), ip); n != 0 {
					t.Errorf("%s, %s: %d frames left", name, when, n)
				}
			}
			allow := func(ranges map[netip.Prefix]bpf.Allowance) {
				t.Helper()
				if err := r.AllowRanges(bpf.InForce, ranges); err != nil {
					t.Fatal(err)
				}
			}
			set(false)
			seen("while nothing is denied")
			set(true)
			unseen("denied")
			allow(map[netip.Prefix]bpf.Allowance{host(ip): {UDP: []bpf.PortRange{{First: 1, Last: leaver.port - 1}, {First: leaver.port + 1, Last: 65535}}}})
			unseen("for other ports excepted")
			other := netip.MustParsePrefix("::/0")
			if ip.Is6() {
				other = netip.MustParsePrefix("0.0.0.0/0")
			}
			allow(map[netip.Prefix]bpf.Allowance{other: {Every: true}})
			unseen("excepted for the other family")
			allow(map[netip.Prefix]bpf.Allowance{host(ip): quic})
			if leaver.always {
				unseen("excepted for UDP")
			} else {
				seen("excepted")
			}
			allow(nil)
			unseen("excepted no more")
		}
	}
	set(true)
	if err := r.AllowRanges(bpf.InForce, map[netip.Prefix]bpf.Allowance{
		netip.MustParsePrefix("0.0.0.0/0"): {Every: true}, netip.MustParsePrefix("::/0"): {Every: true},
	}); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []netip.Addr{outside.IPv4, outside.IPv6} {
		port.Take()
		if err := ping(64, echoRequest6)(pod, netip.AddrPortFrom(ip, quicPort)); err != nil {
			t.Errorf("every protocol is excepted: %v", err)
		}
		eventually(t, "where every protocol is excepted ICMP leaves", func() bool { return toward(port.Take(), ip) > 0 })
	}
}

// What the mesh carries, and what is asked of DNS servers, goes on where the way out is denied; and the node's probes.
func TestTheMeshGoesOnWhereTheWayOutIsDenied(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	pod, far := a.Pod("pod"), b.Pod("far")
	app, kubelet := pod.Start(), a.Start()
	app.Listen("[::]:8080")
	far.Start().Listen("[::]:8080")
	b.capture(t, far)
	p := podOf(t, pod)
	p.DNS, p.EgressDenied = true, true
	c, err := a.Enroll(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	r := serveDNS(t, c)
	port := pod.SniffPort()
	for _, ip := range []netip.Addr{far.IPv4, far.IPv6} {
		conn := mustDial(t, app, netip.AddrPortFrom(ip, appPort))
		if err := conn.Echo("hello"); err != nil {
			t.Error(err)
		}
		if _, err := app.AskUDP(netip.AddrPortFrom(ip, dnsPort)); err != nil || len(r.take()) != 1 {
			t.Errorf("DNS to %s: %v", ip, err)
		}
	}
	for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
		if err := mustDial(t, kubelet, netip.AddrPortFrom(ip, appPort)).Echo("alive?"); err != nil {
			t.Error(err)
		}
	}
	frames := port.Take()
	for _, ip := range []netip.Addr{far.IPv4, far.IPv6} {
		if n := toward(frames, ip); n != 0 {
			t.Errorf("%d frames to %s", n, ip)
		}
	}
	// Neighbours that forgot the pod find it again.
	if err := pod.Node.Do(flushNeighbours); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
		if err := mustDial(t, kubelet, netip.AddrPortFrom(ip, appPort)).Echo("still alive?"); err != nil {
			t.Errorf("found anew at %s: %v", ip, err)
		}
	}
}

func flushNeighbours() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		neighbours, err := netlink.NeighList(0, family)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			if n.State&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 {
				if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
					return err
				}
			}
		}
	}
	return nil
}

// An address of a name is allowed for its time, and for as long as it is used.
func TestNamesAreAllowedForTheirTime(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, outside := a.Pod("pod"), network.Node("b").Pod("outside")
	outside.Start().ListenUDP("[::]:443")
	app := pod.Start()
	r := a.captureDNS(t, pod)
	if err := r.SetEgress(true); err != nil {
		t.Fatal(err)
	}
	quic := bpf.Allowance{UDP: []bpf.PortRange{{First: quicPort, Last: quicPort}}}
	for _, ip := range []netip.Addr{outside.IPv4, outside.IPv6} {
		answered := func(when string, want bool) {
			t.Helper()
			_, err := app.AskUDPWith(netip.AddrPortFrom(ip, quicPort), netnstest.DialOptions{Timeout: 200 * time.Millisecond})
			if (err == nil) != want {
				t.Errorf("%s, %s: %v", ip, when, err)
			}
		}
		answered("not allowed", false)
		if err := r.AllowName(bpf.InForce, ip, quic, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond)
		answered("its time is over", false)
		if err := r.AllowName(bpf.InForce, ip, quic, 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		answered("allowed", true)
		if left, err := r.NameLeft(bpf.InForce, ip); err != nil || left < 20*time.Second {
			t.Errorf("%s is used, and left are %v, %v", ip, left, err)
		}
		if err := r.ForbidName(bpf.InForce, ip); err != nil {
			t.Fatal(err)
		}
		answered("forbidden", false)
	}
}

// The denial outlives the process, and ends with the capture, however that ends.
func TestDenialOutlivesTheProcess(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, outside := a.Pod("pod"), network.Node("b").Pod("outside")
	outside.Start().ListenUDP("[::]:443")
	app := pod.Start()
	to := netip.AddrPortFrom(outside.IPv4, quicPort)
	leaves := func() error {
		_, err := app.AskUDPWith(to, netnstest.DialOptions{Timeout: 200 * time.Millisecond})
		return err
	}
	if err := a.captureDNS(t, pod).SetEgress(true); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"denied", "without a process", "before the pod is taken over"} {
		if err := leaves(); err == nil || errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", when, err)
		}
		switch when {
		case "denied":
			a.Close()
		case "without a process":
			a.reopen(t)
		}
	}
	r := a.captureDNS(t, pod)
	if denied, err := r.EgressDenied(); err != nil || !denied {
		t.Errorf("taken over: denied %v, %v", denied, err)
	}
	if err := leaves(); err == nil {
		t.Error("taken over, and it leaves")
	}
	if _, err := app.AskUDP(netip.AddrPortFrom(noServer4, dnsPort)); err != nil {
		t.Errorf("DNS after the takeover: %v", err)
	}
	if err := r.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := leaves(); err != nil {
		t.Errorf("released: %v", err)
	}
	if err := a.captureDNS(t, pod).SetEgress(true); err != nil {
		t.Fatal(err)
	}
	if err := Remove(a.config); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := leaves(); err != nil {
		t.Errorf("after everything was removed: %v", err)
	}
}
