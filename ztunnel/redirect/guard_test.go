package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// plaintext counts the frames that carry TCP in clear text, or may: to or from any port but that of HBONE.
func plaintext(frames [][]byte) (n int) {
	for _, f := range frames {
		if mayBeTCP(f) {
			n++
		}
	}
	return n
}

func mayBeTCP(frame []byte) bool {
	if len(frame) < 14 {
		return false
	}
	at := 14
	kind := binary.BigEndian.Uint16(frame[12:])
	for (kind == unix.ETH_P_8021Q || kind == unix.ETH_P_8021AD) && len(frame) >= at+4 {
		kind, at = binary.BigEndian.Uint16(frame[at+2:]), at+4
	}
	ip := frame[at:]
	switch {
	case kind == unix.ETH_P_IP && len(ip) >= ip4Size:
		return ip[9] == unix.IPPROTO_TCP && !isHBONE(ip, int(ip[0]&0xf)*4)
	case kind == unix.ETH_P_IPV6 && len(ip) >= ip6Size:
		next, at := ip[6], ip6Size
		for (next == unix.IPPROTO_HOPOPTS || next == unix.IPPROTO_DSTOPTS || next == unix.IPPROTO_FRAGMENT) && len(ip) >= at+8 {
			size := 8
			if next != unix.IPPROTO_FRAGMENT {
				size += int(ip[at+1]) * 8
			}
			next, at = ip[at], at+size
		}
		return next == unix.IPPROTO_TCP && !isHBONE(ip, at)
	}
	return false
}

func isHBONE(ip []byte, at int) bool {
	return len(ip) >= at+4 &&
		(binary.BigEndian.Uint16(ip[at:]) == bpf.PortHBONE || binary.BigEndian.Uint16(ip[at+2:]) == bpf.PortHBONE)
}

// captureStrict captures a pod that is strict from the start.
func (n *testNode) captureStrict(t testing.TB, pod *netnstest.Pod) *tunnel {
	t.Helper()
	p := podOf(t, pod)
	p.Strict = true
	c, err := n.Enroll(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return carryUntilEnd(t, c)
}

// What the mesh carries, and what the node asks, is as it was; nothing else is seen of TCP.
func TestStrictPodsTalkThroughTheirZtunnels(t *testing.T) {
	for _, withoutTCX := range []bool{false, true} {
		t.Run(fmt.Sprintf("without tcx: %v", withoutTCX), func(t *testing.T) { testStrictPods(t, withoutTCX) })
	}
}

func testStrictPods(t *testing.T, withoutTCX bool) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	a.withoutTCX, b.withoutTCX = withoutTCX, withoutTCX
	client, near, far := a.Pod("client"), a.Pod("near"), b.Pod("far")
	app, kubelet := client.Start(), a.kubelet(t)
	var ports []*netnstest.Sniffer
	for pod, node := range map[*netnstest.Pod]*testNode{client: a, near: a, far: b} {
		node.captureStrict(t, pod)
		ports = append(ports, pod.SniffPort())
	}
	for _, server := range []*netnstest.Pod{near, far} {
		s := server.Start()
		s.Listen("[::]:8080")
		s.ListenUDP("[::]:53")
		for _, ip := range []netip.Addr{server.IPv4, server.IPv6} {
			for _, options := range []netnstest.DialOptions{{}, {MPTCP: true}, {Device: "eth0"}} {
				conn, err := app.DialWith(netip.AddrPortFrom(ip, appPort), options)
				if err != nil {
					t.Fatalf("to %s, %+v: %v", ip, options, err)
				}
				if err := conn.Echo("hello"); err != nil {
					t.Error(err)
				}
				conn.Close()
			}
			if _, err := app.AskUDP(netip.AddrPortFrom(ip, 53)); err != nil {
				t.Errorf("UDP to %s: %v", ip, err)
			}
		}
	}
	for _, port := range ports {
		if n := plaintext(port.Take()); n != 0 {
			t.Errorf("%d frames in plaintext", n)
		}
	}
	for _, ip := range []netip.Addr{near.IPv4, near.IPv6} { // a probe is answered, and an answer is plaintext
		conn := mustDial(t, kubelet, netip.AddrPortFrom(ip, appPort))
		if err := conn.Echo("alive?"); err != nil {
			t.Error(err)
		}
		if _, err := kubelet.Dial(netip.AddrPortFrom(ip, 81)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("probe of a closed port: %v, want connection refused", err)
		}
	}
	after := verdicts(t, a)
	if after["guard_kubelet"] == 0 || after["guard_own"] == 0 || after["guard_handshake"] == 0 || after["guard_not_tcp"] == 0 {
		t.Errorf("verdicts: %v", after)
	}
}

// A sender of one test packet or more, in the namespace of the pod; to is a listening port outside the mesh.
type attack struct {
	name string
	send func(from *netnstest.Pod, to netip.AddrPort) error
	six  bool // IPv6 too
	// What bypasses the pod's own end of the link is seen there, and dropped after.
	beyond bool
}

var attacks = []attack{
	{name: "mark reset after connect", six: true, send: resetMark},
	{name: "rule deleted", six: true, send: deleteRule},
	{name: "raw socket", six: true, send: sendRaw},
	{name: "packet socket", six: true, send: frameSender(frame{})},
	{name: "packet socket that lies of its protocol", six: true, send: frameSender(frame{protocol: unix.ETH_P_ARP})},
	{name: "packet socket past the queue", six: true, beyond: true, send: frameSender(frame{bypass: true})},
	{name: "VLAN tag", six: true, send: frameSender(frame{vlan: true})},
	{name: "IP options", send: frameSender(frame{options: true})},
	{name: "fragment", six: true, send: frameSender(frame{fragment: true})},
	{name: "later fragment", six: true, send: frameSender(frame{fragment: true, offset: 1})},
	{name: "destination options", six: true, send: frameSender(frame{destinationOptions: true})},
	{name: "second device", send: byMacvlan},
	{name: "forwarded from a namespace of its own", send: forward},
}

// Whatever an application does to its sockets, packets and namespace, nothing of TCP leaves a strict pod but by ztunnel. Each of
// these is seen on the wire while the pod is permissive.
func TestNothingLeavesAStrictPod(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	other := b.Pod("other")
	other.Start().Listen("[::]:8080")
	b.capture(t, other) // what ztunnel sends goes to its tunnel port
	for i, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) { testAttack(t, attack, a, a.Pod(fmt.Sprint("pod", i)), other) })
	}
}

func testAttack(t *testing.T, attack attack, a *testNode, pod, other *netnstest.Pod) {
	app := pod.Start()
	for _, ip := range []netip.Addr{other.IPv4, other.IPv6} { // so that the pod knows its router
		if err := mustDial(t, app, netip.AddrPortFrom(ip, appPort)).Close(); err != nil {
			t.Error(err)
		}
	}
	u := a.capture(t, pod)
	port, arrived := pod.SniffPort(), other.Sniff("eth0")
	ips := []netip.Addr{other.IPv4}
	if attack.six {
		ips = append(ips, other.IPv6)
	}
	seen := func(what string, s *netnstest.Sniffer) {
		t.Helper()
		eventually(t, what, func() bool { return plaintext(s.Take()) > 0 })
	}
	for _, ip := range ips {
		if attack.six && ip.Is4() && attack.name == "destination options" {
			continue
		}
		to := netip.AddrPortFrom(ip, appPort)
		if err := u.SetStrict(false, 0); err != nil {
			t.Fatal(err)
		}
		if err := attack.send(pod, to); err != nil {
			t.Fatalf("to %s: %v", ip, err)
		}
		seen(fmt.Sprintf("the attack on %s is seen while permissive", ip), port)
		if err := u.SetStrict(true, 0); err != nil {
			t.Fatal(err)
		}
		for still := true; still; { // what is under way
			time.Sleep(20 * time.Millisecond)
			still = plaintext(port.Take())+plaintext(arrived.Take()) > 0
		}
		before := dropped(verdicts(t, a))
		_ = attack.send(pod, to) // it may be told that it failed
		eventually(t, fmt.Sprintf("the attack on %s is dropped", ip), func() bool { return dropped(verdicts(t, a)) > before })
		time.Sleep(20 * time.Millisecond)
		if n := plaintext(port.Take()); n != 0 && !attack.beyond {
			t.Errorf("to %s: %d frames on the node's end of the link", ip, n)
		}
		if n := plaintext(arrived.Take()); n != 0 {
			t.Errorf("to %s: %d frames arrived", ip, n)
		}
	}
}

func dropped(verdicts map[string]uint64) (n uint64) {
	for name, count := range verdicts {
		if len(name) > 13 && name[:13] == "guard_dropped" {
			n += count
		}
	}
	return n
}

// resetMark connects by way of ztunnel, and takes the mark off for what it says then.
func resetMark(pod *netnstest.Pod, to netip.AddrPort) error {
	return pod.Do(func() error {
		fd, err := unix.Socket(familyOf(to), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, sockaddr(to)); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0); err != nil {
			return err
		}
		for range 3 { // the first may go by the route that the socket remembers
			_, err = unix.Write(fd, []byte("in plaintext"))
			if err == unix.ECONNRESET || err == unix.EPIPE { // by who got it, and knows of no such connection
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
		return err
	})
}

// deleteRule has marked packets take the way of all others, for as long as the rule is not there again: so it tries a few times.
func deleteRule(pod *netnstest.Pod, to netip.AddrPort) error {
	return pod.Do(func() error {
		for range 10 {
			if err := deleteMarkRules(to.Addr()); err != nil {
				return err
			}
			fd, err := unix.Socket(familyOf(to), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, sockaddr(to)); err != nil && err != unix.EINPROGRESS {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	})
}

func deleteMarkRules(of netip.Addr) error {
	rules, err := netlink.RuleList(family(of))
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Mark == uint32(bpf.Mark) {
			if err := netlink.RuleDel(&r); err != nil && err != unix.ENOENT {
				return err
			}
		}
	}
	return nil
}

func familyOf(to netip.AddrPort) int {
	if to.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// sendRaw sends a SYN by a raw socket.
func sendRaw(pod *netnstest.Pod, to netip.AddrPort) error {
	return pod.Do(func() error {
		fd, err := unix.Socket(familyOf(to), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, synTo(to.Port()), 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
	})
}

// synTo is a SYN without checksum.
func synTo(port uint16) []byte {
	tcp := make([]byte, tcpSize)
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], port)
	tcp[12], tcp[tcpFlags] = tcpSize/4<<4, flagSYN
	return tcp
}

// A frame is a SYN as a packet socket sends it.
type frame struct {
	protocol           uint16 // that the socket says; zero: the true one
	bypass             bool   // the queueing discipline, and what is attached there
	vlan               bool
	options            bool
	fragment           bool
	offset             uint16
	destinationOptions bool
	tag                func(fd int) error // nil: the socket is nobody's
}

func frameSender(f frame) func(*netnstest.Pod, netip.AddrPort) error {
	return func(pod *netnstest.Pod, to netip.AddrPort) error {
		return pod.Do(func() error { return f.send(pod, to) })
	}
}

func (f frame) send(pod *netnstest.Pod, to netip.AddrPort) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	gateway, err := gatewayOf(to.Addr())
	if err != nil {
		return err
	}
	kind := uint16(unix.ETH_P_IPV6)
	packet := f.ip6(pod.IPv6, to)
	if to.Addr().Is4() {
		kind, packet = unix.ETH_P_IP, f.ip4(pod.IPv4, to)
	}
	content := append(append([]byte(nil), gateway...), eth0.Attrs().HardwareAddr...)
	if f.vlan {
		content = append(content, 0x81, 0, 0, 7)
	}
	content = append(binary.BigEndian.AppendUint16(content, kind), packet...)
	said := kind
	if f.protocol != 0 {
		said = f.protocol
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if f.tag != nil {
		if err := f.tag(fd); err != nil {
			return err
		}
	}
	if f.bypass {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return err
		}
	}
	said = said<<8 | said>>8
	return unix.Sendto(fd, content, 0, &unix.SockaddrLinklayer{Ifindex: eth0.Attrs().Index, Protocol: said, Halen: 6, Addr: [8]byte(append(gateway[:6:6], 0, 0))})
}

// gatewayOf returns the hardware address of the pod's router, which it has spoken with.
func gatewayOf(to netip.Addr) ([]byte, error) {
	neighbours, err := netlink.NeighList(0, family(to))
	if err != nil {
		return nil, err
	}
	for _, n := range neighbours {
		if len(n.HardwareAddr) == 6 && n.State&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE) != 0 {
			return n.HardwareAddr, nil
		}
	}
	return nil, errors.New("the router is not known yet")
}

func (f frame) ip4(from netip.Addr, to netip.AddrPort) []byte {
	header := make([]byte, ip4Size)
	if f.options {
		header = append(header, 1, 1, 1, 0) // no operation, end of options
	}
	tcp := synTo(to.Port())
	header[0], header[8], header[9] = 4<<4|byte(len(header)/4), 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(tcp)))
	if f.fragment {
		const more = 0x2000
		binary.BigEndian.PutUint16(header[6:], more|f.offset)
	}
	copy(header[12:], from.AsSlice())
	copy(header[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(header[10:], fold(sum(0, header)))
	return append(header, tcp...)
}

func (f frame) ip6(from netip.Addr, to netip.AddrPort) []byte {
	header := make([]byte, ip6Size)
	header[0], header[6], header[7] = 6<<4, unix.IPPROTO_TCP, 64
	copy(header[8:], from.AsSlice())
	copy(header[24:], to.Addr().AsSlice())
	var extension []byte
	if f.fragment {
		header[6], extension = unix.IPPROTO_FRAGMENT, []byte{unix.IPPROTO_TCP, 0, byte(f.offset >> 5), byte(f.offset<<3) | 1, 0, 0, 0, 1}
	}
	if f.destinationOptions {
		header[6], extension = unix.IPPROTO_DSTOPTS, []byte{unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0}
	}
	payload := append(extension, synTo(to.Port())...)
	binary.BigEndian.PutUint16(header[4:], uint16(len(payload)))
	return append(header, payload...)
}

// byMacvlan connects from a device of the application's own on top of the pod's.
func byMacvlan(pod *netnstest.Pod, to netip.AddrPort) error {
	return pod.Do(func() error {
		device, err := netlink.LinkByName("own0")
		if err != nil {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			own := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "own0", ParentIndex: eth0.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
			if err := netlink.LinkAdd(own); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(own); err != nil {
				return err
			}
			device = own
		}
		packet := frame{}.ip4(pod.IPv4, to)
		content := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, device.Attrs().HardwareAddr...)
		if len(content) < 12 {
			content = append(content, 2, 0, 0, 0, 0, 9)
		}
		content = append(append(content, 8, 0), packet...)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, content, 0, &unix.SockaddrLinklayer{Ifindex: device.Attrs().Index, Protocol: 8, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
	})
}

// forward connects from a namespace that nobody captures, by way of the pod's.
func forward(pod *netnstest.Pod, to netip.AddrPort) error {
	inner := netnstest.Behind(pod)
	return inner.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, sockaddr(to)); err != nil && err != unix.EINPROGRESS {
			return os.NewSyscallError("connect", err)
		}
		time.Sleep(10 * time.Millisecond)
		return nil
	})
}

// A program that somebody takes off, at either end, is there again within a second; meanwhile the other end drops.
func TestGuardIsThereAgain(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	pod, other := a.Pod("pod"), b.Pod("other")
	other.Start().Listen("[::]:8080")
	b.capture(t, other)
	u := a.captureStrict(t, pod)
	to, arrived := netip.AddrPortFrom(other.IPv4, appPort), other.Sniff("eth0")
	mustDial(t, pod.Start(), to) // so that the router is known
	for at := range u.guard.sites {
		s := u.site(at)
		if err := s.clear(bpf.GuardName, 0); err != nil {
			t.Fatal(err)
		}
		if err := (frame{bypass: !at.onNode}).sendFrom(pod, to); err != nil && !errors.Is(err, unix.ENOBUFS) { // dropped
			t.Fatal(err)
		}
		start := time.Now()
		eventually(t, "the guard is there again", func() bool { return s.has(t, bpf.GuardName) == 1 })
		t.Logf("on node %v: after %v", at.onNode, time.Since(start))
	}
	if n := plaintext(arrived.Take()); n != 0 {
		t.Errorf("%d frames arrived", n)
	}
}

func (f frame) sendFrom(pod *netnstest.Pod, to netip.AddrPort) error {
	return pod.Do(func() error { return f.send(pod, to) })
}

// has counts the programs of a name.
func (s site) has(t testing.TB, name string) (n int) {
	t.Helper()
	err := s.netns.Do(func() error {
		result, err := link.QueryPrograms(link.QueryOptions{Target: s.index, Attach: s.kind()})
		if err != nil {
			return err
		}
		for i := range result.Programs {
			ids, err := s.query()
			if err != nil || i >= len(ids) {
				return err
			}
			found, err := named(ids[i:i+1], name, 0)
			closeAll(found)
			if err != nil {
				return err
			}
			n += len(found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
