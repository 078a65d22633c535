package redirect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// What cannot be reached fails connect(2) with the errno that it has without the mesh; what can is connected.
func TestConnectFailsAsWithoutTheMesh(t *testing.T) {
	for _, withoutTCX := range []bool{false, true} {
		t.Run(fmt.Sprintf("without tcx: %v", withoutTCX), func(t *testing.T) { testConnect(t, withoutTCX) })
	}
}

func testConnect(t *testing.T, withoutTCX bool) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	client, outside, server := a.Pod("client"), a.Pod("outside"), network.Node("b").Pod("server")
	server.Start().Listen("[::]:8080")
	captured, plain := client.Start(), outside.Start()
	for _, pod := range []*netnstest.Pod{client, outside} {
		if err := pod.Do(addDeadEnds); err != nil {
			t.Fatal(err)
		}
	}
	a.withoutTCX = withoutTCX
	u := a.capture(t, client)
	before := verdicts(t, a)
	var n uint64
	for _, options := range []netnstest.DialOptions{{}, {MPTCP: true}, {Mapped: true}} {
		for _, way := range []struct {
			name string
			to   netip.AddrPort
			want unix.Errno
		}{
			{"closed port", netip.AddrPortFrom(server.IPv4, 81), unix.ECONNREFUSED},
			{"closed port, IPv6", netip.AddrPortFrom(server.IPv6, 81), unix.ECONNREFUSED},
			{"unreachable host", netip.MustParseAddrPort("192.0.2.1:80"), unix.EHOSTUNREACH},
			{"unreachable host, IPv6", netip.MustParseAddrPort("[2001:db8:1::1]:80"), unix.EHOSTUNREACH},
			{"no route", netip.MustParseAddrPort("198.51.100.1:80"), unix.ENETUNREACH},
			{"no route, IPv6", netip.MustParseAddrPort("[2001:db8:2::1]:80"), unix.ENETUNREACH},
			{"open port", netip.AddrPortFrom(server.IPv4, appPort), 0},
			{"open port, IPv6", netip.AddrPortFrom(server.IPv6, appPort), 0},
		} {
			for name, app := range map[string]*netnstest.App{"captured": captured, "plain": plain} {
				_, err := app.DialWith(way.to, options)
				if got := errnoOf(err); got != way.want || (err == nil) != (way.want == 0) {
					t.Errorf("%s, %s, %+v: %v, want %v", name, way.name, options, err, way.want)
				}
				if err != nil && !strings.HasPrefix(err.Error(), "connect: ") {
					t.Errorf("%s, %s: it was not connect(2) that failed: %v", name, way.name, err)
				}
			}
			n++
		}
	}
	if after := verdicts(t, a); after["hold_held"]-before["hold_held"] != n {
		t.Errorf("%d SYNs were held, want %d: %v", after["hold_held"]-before["hold_held"], n, after)
	}
	// The next process takes over; then the pod is let go, and nothing looks at its lo any more.
	a.Close()
	u.cut()
	a.reopen(t)
	a.withoutTCX = withoutTCX
	before = verdicts(t, a)
	u = a.capture(t, client)
	if _, err := captured.Dial(netip.AddrPortFrom(server.IPv4, 81)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after a restart: %v, want connection refused", err)
	}
	if after := verdicts(t, a); after["hold_held"]-before["hold_held"] != 1 {
		t.Errorf("%d SYNs were held after a restart, want 1", after["hold_held"]-before["hold_held"])
	}
	if err := u.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	before = verdicts(t, a)
	captured.Listen("127.0.0.1:8080")
	mustDial(t, captured, netip.MustParseAddrPort("127.0.0.1:8080"))
	mustDial(t, captured, netip.AddrPortFrom(server.IPv4, appPort))
	for name, n := range verdicts(t, a) {
		if strings.HasPrefix(name, "hold_") && n != before[name] {
			t.Errorf("of a pod that was let go: %s", name)
		}
	}
}

// Programs that believe the first thing that a socket says when it wakes up are not told of a connection where there is none.
// One in a thousand may be: the kernel's own race, which is there without a mesh when the message comes from afar.
func TestProgramsAreNotToldOfAConnectionThatFails(t *testing.T) {
	const dials, most = 400, 4
	a := openNode(t, netnstest.New(t, "a").Node("a"))
	client := a.Pod("client")
	app := client.Start()
	if err := client.Do(addDeadEnds); err != nil {
		t.Fatal(err)
	}
	a.capture(t, client)
	for _, to := range []string{"192.0.2.1:80", "198.51.100.1:80"} {
		var misled int
		for range dials {
			_, err := app.DialWith(netip.MustParseAddrPort(to), netnstest.DialOptions{Hasty: true})
			switch errnoOf(err) {
			case unix.EHOSTUNREACH, unix.ENETUNREACH:
			default:
				t.Fatalf("%s: %v", to, err)
			}
			if !strings.HasPrefix(err.Error(), "connect: ") {
				misled++
			}
		}
		if misled > most {
			t.Errorf("%s: connect(2) seemed to succeed in %d of %d", to, misled, dials)
		}
	}
}

// addDeadEnds makes some destinations unreachable from a namespace, by the kernel's own routing.
func addDeadEnds() error {
	for _, dead := range []struct {
		prefix string
		kind   int
	}{
		{"192.0.2.0/24", unix.RTN_UNREACHABLE}, {"2001:db8:1::/48", unix.RTN_UNREACHABLE},
		{"198.51.100.0/24", unix.RTN_THROW}, {"2001:db8:2::/48", unix.RTN_THROW},
	} {
		prefix := netip.MustParsePrefix(dead.prefix)
		dst := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: dead.kind}); err != nil {
			return fmt.Errorf("add route to %s: %w", prefix, err)
		}
	}
	return nil
}

func errnoOf(err error) (errno unix.Errno) {
	errors.As(err, &errno)
	return errno
}

// While nobody answers, nothing leaves: a process that is killed then leaves the connection refused, and the next one serves
// the SYN that the application's kernel repeats.
func TestKilledWhileHeld(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	pod, other := network.Node("a").Pod("pod"), network.Node("b").Pod("other")
	other.Start().Listen("[::]:8080")
	config := configOf(t, network.Node("a"))
	t.Cleanup(func() { Remove(config) })
	kubelet := startKubelet(t, network.Node("a"), netnstest.Cgroup())
	onTheWire := capturePlaintext(t, network.Node("a"))
	for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
		// The first of them is captured first: what is there to be reached is there before it is asked for.
		dialKilled := func(next bool) (err error, slow bool) {
			daemon := start(t, config, daemonOrder{Mute: true}, other, pod)
			app, dialled := pod.Start(), make(chan error, 1)
			begin := time.Now()
			go func() {
				_, err := app.DialWith(netip.AddrPortFrom(ip, appPort), netnstest.DialOptions{Timeout: 4 * time.Second})
				dialled <- err
			}()
			select {
			case err := <-dialled:
				t.Errorf("to %s: %v, and nobody had answered", ip, err)
				dialled <- err
			case <-time.After(300 * time.Millisecond):
			}
			daemon.Kill()
			if next {
				daemon = startDaemon(t, config, other, pod)
				slow = time.Since(begin) > synRepeat
			}
			err = <-dialled
			daemon.Kill()
			return err, slow
		}
		if err, _ := dialKilled(false); err == nil || !isRefusal(err) {
			t.Errorf("to %s, which nobody served: %v", ip, err)
		}
		err, slow := dialKilled(true)
		for range 5 {
			if err == nil || !slow || !isRefusal(err) {
				break
			}
			err, slow = dialKilled(true) // the SYN was repeated too early
		}
		if err != nil {
			t.Errorf("to %s, served: %v", ip, err)
		}
	}
	if packets := onTheWire(); len(packets) > 0 {
		t.Errorf("on the wire in plaintext: %q", packets)
	}
	mustDial(t, kubelet, netip.AddrPortFrom(other.IPv4, appPort)) // which the capture must see
	if len(onTheWire()) == 0 {
		t.Error("the capture does not see what is there")
	}
}

// synRepeat is when the kernel repeats a SYN, less what it takes to see that.
const synRepeat = 900 * time.Millisecond

// capturePlaintext returns what takes the packets on a node's devices that are for the application's port: from whom to whom, with
// their flags.
func capturePlaintext(t *testing.T, node *netnstest.Node) (take func() []string) {
	t.Helper()
	const everything = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	var fd int
	if err := node.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, everything)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() (all []string) {
		packet := make([]byte, 2048)
		for {
			size, _, err := unix.Recvfrom(fd, packet, 0)
			if err != nil {
				return all
			}
			s := syn(packet[:size])
			if size < ip6Size || s.ipSize()+tcpSize > size {
				continue
			}
			if protocol := map[bool]byte{true: s[9], false: s[6]}[s.is4()]; protocol == unix.IPPROTO_TCP && binary.BigEndian.Uint16(s.tcp()[2:]) == appPort {
				source, destination := s.addresses()
				all = append(all, fmt.Sprintf("%s:%d > %s flags %#x", net.IP(source), binary.BigEndian.Uint16(s.tcp()), net.IP(destination), s.tcp()[tcpFlags]))
			}
		}
	}
}

// Whom ztunnel has not answered when his pod is let go is let on, to be accepted as without holding.
func TestReleaseLetsOnWhatIsHeld(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	other.Start().Listen("[::]:8080")
	c, err := a.Enroll(t.Context(), podOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	u := accept(c)
	t.Cleanup(func() { u.closeListeners(); u.cut(); u.running.Wait() })
	held := make(chan *Held, 2)
	if err := c.Hold(func(h *Held) { held <- h }); err != nil {
		t.Fatal(err)
	}
	dialled := make(chan error, 2)
	for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
		app := pod.Start()
		go func() {
			conn, err := app.Dial(netip.AddrPortFrom(ip, appPort))
			if err == nil {
				err = conn.Echo("hello")
			}
			dialled <- err
		}()
	}
	both := []*Held{<-held, <-held}
	expect(t, u)
	if err := c.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range both {
		if err := <-dialled; err != nil {
			t.Error(err)
		}
	}
	if got := len(u.take()); got != 2 {
		t.Errorf("%d connections were carried, want 2", got)
	}
	for _, h := range both { // too late, and no harm
		if err := h.Refuse(unix.ECONNREFUSED); err != nil {
			t.Error(err)
		}
	}
	mustDial(t, pod.Start(), netip.AddrPortFrom(other.IPv4, appPort))
	expect(t, u)
}

// More SYNs than ztunnel reads are dropped, and come again a second later.
func TestMoreIsHeldThanFits(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	other.Start().Listen("[::]:8080")
	c, err := a.Enroll(t.Context(), podOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	u := accept(c)
	t.Cleanup(func() { u.closeListeners(); u.cut(); u.running.Wait() })
	reading := make(chan struct{})
	if err := c.Hold(func(h *Held) {
		<-reading
		h.Refuse(unix.ECONNREFUSED)
	}); err != nil {
		t.Fatal(err)
	}
	const flood = 10000
	sockets := make([]int, 0, flood)
	defer func() {
		for _, fd := range sockets {
			unix.Close(fd)
		}
	}()
	if err := pod.Do(func() error {
		for range flood {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			sockets = append(sockets, fd)
			if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(other.IPv4, appPort))); err != unix.EINPROGRESS {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	v := verdicts(t, a)
	if v["hold_full"] == 0 || v["hold_held"] == 0 || v["hold_full"]+v["hold_held"] < flood {
		t.Errorf("of %d SYNs %d were held, %d did not fit", flood, v["hold_held"], v["hold_full"])
	}
	close(reading)
	waiting := slices.Clone(sockets)
	eventually(t, "all are refused", func() bool {
		waiting = slices.DeleteFunc(waiting, func(fd int) bool {
			done, err := connected(fd)
			if done && !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%v, want connection refused", err)
			}
			return done
		})
		return len(waiting) == 0
	})
	expect(t, u)
	c.hold.mu.Lock()
	defer c.hold.mu.Unlock()
	if len(c.hold.waiting) != 0 {
		t.Errorf("%d are still known", len(c.hold.waiting))
	}
}

// Data that TCP Fast Open puts into the SYN arrives, once; a closed port refuses it.
func TestFastOpen(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	other.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	before := verdicts(t, a)
	open := func(dst netip.AddrPort) (heard string, err error) {
		err = pod.Do(func() error {
			const client, withoutCookie = 1, 4
			if err := os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte(strconv.Itoa(client|withoutCookie)), 0); err != nil {
				return err
			}
			family := unix.AF_INET6
			if dst.Addr().Is4() {
				family = unix.AF_INET
			}
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
				return err
			}
			if err := unix.Sendto(fd, []byte("hello"), unix.MSG_FASTOPEN, sockaddr(dst)); err != nil {
				return err
			}
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				return err
			}
			for buffer := make([]byte, 512); ; {
				n, err := unix.Read(fd, buffer)
				if n <= 0 || err != nil {
					return err
				}
				heard += string(buffer[:n])
			}
		})
		return heard, err
	}
	for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
		heard, err := open(netip.AddrPortFrom(ip, appPort))
		if _, echo, _ := strings.Cut(heard, "\n"); err != nil || echo != "hello" { // after what the server sees
			t.Errorf("%s: heard %q, %v", ip, heard, err)
		}
		if _, err := open(netip.AddrPortFrom(ip, 81)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", ip, err)
		}
	}
	if got := len(u.take()); got != 2 {
		t.Errorf("%d connections were carried, want 2", got)
	}
	if held := verdicts(t, a)["hold_held"] - before["hold_held"]; held != 4 {
		t.Errorf("%d SYNs were held, want 4", held)
	}
}

// As a connection is made, a lookup by another CPU finds only the listener, for a moment that cannot be had at will. Here a program
// brings the client's first data to the listener, whose reset breaks the connection: without hold, that is.
func TestResetOfAConnectionThatIsThere(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	other := network.Node("b").Pod("other")
	other.Start().Listen("[::]:8080")
	for name, holds := range map[string]bool{"held": true, "control": false} {
		t.Run(name, func(t *testing.T) {
			pod := a.Pod(name)
			app := pod.Start()
			app.Listen("[::]:8080")
			c, err := a.Enroll(t.Context(), podOf(t, pod))
			if err != nil {
				t.Fatal(err)
			}
			u := accept(c)
			t.Cleanup(func() { u.closeListeners(); u.cut(); u.running.Wait() })
			if holds {
				if err := c.Hold(func(h *Held) { h.Pass() }); err != nil {
					t.Fatal(err)
				}
			}
			check := func(what string, to netip.AddrPort, talk func() error) {
				t.Helper()
				strayed := stray(t, pod, u.listeners()[bpf.Outbound], to)
				was := verdicts(t, a)["hold_dropped_reset"]
				err := talk()
				dropped := verdicts(t, a)["hold_dropped_reset"] - was
				switch {
				case !strayed():
					t.Errorf("%s: nothing went astray", what)
				case holds && (err != nil || dropped != 1):
					t.Errorf("%s: %v, %d resets dropped", what, err, dropped)
				case !holds && (!errors.Is(err, unix.ECONNRESET) || dropped != 0):
					t.Errorf("%s: %v, %d resets dropped: the test shows nothing", what, err, dropped)
				}
			}
			for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
				to := netip.AddrPortFrom(ip, appPort)
				conn, err := app.Dial(to)
				if err != nil {
					t.Fatal(err)
				}
				check("to "+ip.String(), to, func() error { return conn.Echo("still here") })

				to = netip.AddrPortFrom(sameFamily(pod, ip), appPort)
				delivery, err := u.DialApp(t.Context(), ip, to)
				if err != nil {
					t.Fatal(err)
				}
				defer delivery.Close()
				delivery.SetDeadline(time.Now().Add(5 * time.Second))
				lines := bufio.NewReader(delivery)
				if _, err := lines.ReadBytes('\n'); err != nil { // the application's greeting
					t.Fatal(err)
				}
				check("from "+ip.String(), to, func() error {
					if _, err := delivery.Write([]byte("still here\n")); err != nil {
						return err
					}
					_, err := lines.ReadBytes('\n')
					return err
				})
			}
		})
	}
}

// stray brings the next segment with data that comes to an address by the pod's lo to a listener, whichever connection it is of. It
// returns whether that has happened.
func stray(t *testing.T, pod *netnstest.Pod, listener *net.TCPListener, to netip.AddrPort) (happened func() bool) {
	t.Helper()
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sockets.Close() })
	left, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { left.Close() })
	if err := control(listener, func(fd int) error { return sockets.Put(uint32(0), uint64(fd)) }); err != nil {
		t.Fatal(err)
	}
	if err := left.Put(uint32(0), uint32(1)); err != nil {
		t.Fatal(err)
	}
	const ethernet, ip4, ip6, tcp, timestamps = 14, 20, 40, 20, 12
	ip, protocol := int32(ip6), int32(unix.ETH_P_IPV6)
	if to.Addr().Is4() {
		ip, protocol = ip4, unix.ETH_P_IP
	}
	port := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, to.Port()))
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, 16, asm.Word), // protocol, in network byte order
		asm.JNE.Imm(asm.R1, int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, uint16(protocol)))), "pass"),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.Word), // length
		asm.JLE.Imm(asm.R1, ethernet+ip+tcp+timestamps, "pass"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, ethernet+ip+2), // the destination port
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, -8),
		asm.Mov.Imm(asm.R4, 2),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R1, asm.RFP, -8, asm.Half),
		asm.JNE.Imm(asm.R1, int32(port), "pass"),
		// The first alone.
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, left.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "pass"),
		asm.StoreImm(asm.R0, 0, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, sockets.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("pass"), // to the next program
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	var attached link.Link
	err = pod.Do(func() (err error) {
		attached, err = link.AttachTCX(link.TCXOptions{Interface: loopback, Program: program, Attach: ebpf.AttachTCXIngress})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { attached.Close() })
	return func() bool {
		var n uint32
		if err := left.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	}
}
