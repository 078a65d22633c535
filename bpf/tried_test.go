package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// A packet is an Ethernet frame, as it leaves a pod.
type packet struct {
	name  string
	frame []byte
	// of is what is told of it: nil for nothing, ever.
	of *Tried
	// strict drops it, whatever policies on the way out say.
	strict bool
}

// packets are one of each kind.
func packets() []packet {
	source4, source6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	to4, to6 := netip.MustParseAddrPort("203.0.113.7:443"), netip.MustParseAddrPort("[2001:db8::7]:443")
	bare4, bare6 := netip.AddrPortFrom(to4.Addr(), 0), netip.AddrPortFrom(to6.Addr(), 0)
	of := func(source netip.Addr, to netip.AddrPort, protocol uint8) *Tried {
		return &Tried{Source: source, Destination: to, Protocol: protocol, Packets: 1}
	}
	fragment := frameTo(source4, to4, unix.IPPROTO_UDP)
	fragment[14+6] = 0x20 // more of them
	fragment6 := frameTo(source6, to6, 44)
	fragment6[14+40] = unix.IPPROTO_UDP
	unreadable := frameTo(source4, to4, unix.IPPROTO_UDP)
	unreadable[14] = 0x35 // of no version that there is
	return []packet{
		{"UDP", frameTo(source4, to4, unix.IPPROTO_UDP), of(source4, to4, unix.IPPROTO_UDP), false},
		{"UDP, IPv6", frameTo(source6, to6, unix.IPPROTO_UDP), of(source6, to6, unix.IPPROTO_UDP), false},
		{"a fragment", fragment, of(source4, bare4, unix.IPPROTO_UDP), false},
		{"a fragment, IPv6", fragment6, of(source6, bare6, unix.IPPROTO_UDP), false},
		{"ICMP", frameTo(source4, to4, unix.IPPROTO_ICMP), of(source4, bare4, unix.IPPROTO_ICMP), false},
		{"ICMPv6", frameTo(source6, to6, unix.IPPROTO_ICMPV6), of(source6, bare6, unix.IPPROTO_ICMPV6), false},
		{"SCTP", frameTo(source4, to4, unix.IPPROTO_SCTP), of(source4, bare4, unix.IPPROTO_SCTP), false},
		{"GRE", frameTo(source4, to4, unix.IPPROTO_GRE), of(source4, bare4, unix.IPPROTO_GRE), true},
		{"TCP past the capture", frameTo(source4, to4, unix.IPPROTO_TCP), of(source4, to4, unix.IPPROTO_TCP), true},
		{"TCP past the capture, IPv6", frameTo(source6, to6, unix.IPPROTO_TCP), of(source6, to6, unix.IPPROTO_TCP), true},
		{"what cannot be read", unreadable, &Tried{Packets: 1}, true},
		{"another Ethernet type", ethernet(0x88cc, make([]byte, 40)), &Tried{Packets: 1}, true},
		{"ARP", ethernet(unix.ETH_P_ARP, make([]byte, 28)), nil, false},
	}
}

func ethernet(kind uint16, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 12), kind), content...)
}

// frameTo is a packet of IP whose content has the ports of UDP and TCP.
func frameTo(from netip.Addr, to netip.AddrPort, protocol byte) []byte {
	content := make([]byte, 40)
	binary.BigEndian.PutUint16(content, 40000)
	binary.BigEndian.PutUint16(content[2:], to.Port())
	content[12] = 5 << 4 // words of TCP's header
	if from.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(content)))
		copy(ip[12:], from.AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		return ethernet(unix.ETH_P_IP, append(ip, content...))
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(content)))
	copy(ip[8:], from.AsSlice())
	copy(ip[24:], to.Addr().AsSlice())
	return ethernet(unix.ETH_P_IPV6, append(ip, content...))
}

func loadGuardAt(t testing.TB, n *Node, p GuardPlace) *ebpf.Program {
	t.Helper()
	p.Ethernet = true
	program, err := n.LoadGuard(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// passes gives a packet to a guard.
func passes(t testing.TB, guard *ebpf.Program, frame []byte) bool {
	t.Helper()
	const unspecified, shot = ^uint32(0), 2 // TC_ACT_UNSPEC, TC_ACT_SHOT
	answer, err := guard.Run(&ebpf.RunOptions{Data: frame})
	if err != nil || answer != unspecified && answer != shot {
		t.Fatalf("answer %d, %v", answer, err)
	}
	return answer == unspecified
}

func take(t testing.TB, n *Node, cookie uint64) AllTried {
	t.Helper()
	all, err := n.TakeTried(func(of uint64) bool { return of == cookie })
	if err != nil {
		t.Fatal(err)
	}
	return all[cookie]
}

// Policies on trial drop nothing, and what they would drop is told once: by the guard that drops it, or by the last that lets it
// pass. What those in force say, and what strictness does, they change in nothing.
func TestTrialsDropNothingAndAreToldOnce(t *testing.T) {
	n := load(t, netnstest.BPFFS(t))
	const pod = 7<<40 | 1
	first := loadGuardAt(t, n, GuardPlace{Cookie: pod})
	last := loadGuardAt(t, n, GuardPlace{Cookie: pod, OnNode: true, Last: true})
	for _, denied := range []bool{false, true} {
		for _, strict := range []bool{false, true} {
			for _, tried := range []bool{false, true} {
				if err := n.SetGuard(pod, Guard{Strict: strict}); err != nil {
					t.Fatal(err)
				}
				if err := n.SetEgress(pod, Egress{Denied: denied, Tried: tried}); err != nil {
					t.Fatal(err)
				}
				for _, p := range packets() {
					when := fmt.Sprintf("%s, denied %t, strict %t, on trial %t", p.name, denied, strict, tried)
					wantPass := p.of == nil || !denied && !(strict && p.strict)
					left := passes(t, first, p.frame)
					if left != wantPass {
						t.Errorf("%s: passes %t", when, left)
					}
					if left && !passes(t, last, p.frame) {
						t.Errorf("%s: the pod's end lets it pass, the node's does not", when)
					}
					var want []Tried
					if tried && p.of != nil && !(strict && p.strict) {
						want = []Tried{*p.of}
					}
					if got := take(t, n, pod); !slices.Equal(got.Apart, want) || got.Rest != 0 {
						t.Errorf("%s: told %+v, want %+v", when, got, want)
					}
				}
			}
		}
	}
}

// What an exception of a policy on trial lets out is not told, and is let out by nothing that is in force.
func TestTrialsHaveExceptions(t *testing.T) {
	n := load(t, netnstest.BPFFS(t))
	const pod = 7<<40 | 1
	guard := loadGuardAt(t, n, GuardPlace{Cookie: pod, Last: true})
	to := netip.MustParseAddrPort("203.0.113.7:443")
	for _, exception := range []struct {
		name  string
		allow func(Table) error
		other uint16 // a port that it does not say; zero: it says every
	}{
		{"a port of a range", func(by Table) error {
			return n.AllowRange(by, pod, netip.MustParsePrefix("203.0.113.0/24"), Allowance{UDP: []PortRange{{443, 443}}})
		}, 444},
		{"a name", func(by Table) error {
			return n.AllowName(by, pod, to.Addr(), Allowance{Every: true}, time.Minute)
		}, 0},
	} {
		for _, by := range []Table{InForce, OnTrial} {
			if err := n.RemoveGuard(pod); err != nil {
				t.Fatal(err)
			}
			if err := exception.allow(by); err != nil {
				t.Fatal(err)
			}
			udp := frameTo(netip.MustParseAddr("10.0.0.1"), to, unix.IPPROTO_UDP)
			if err := n.SetEgress(pod, Egress{Tried: true}); err != nil {
				t.Fatal(err)
			}
			if !passes(t, guard, udp) {
				t.Errorf("%s: dropped on trial", exception.name)
			}
			if told := len(take(t, n, pod).Apart) > 0; told == (by == OnTrial) {
				t.Errorf("%s in table %d: told %t", exception.name, by, told)
			}
			if exception.other != 0 {
				passes(t, guard, frameTo(netip.MustParseAddr("10.0.0.1"), netip.AddrPortFrom(to.Addr(), exception.other), unix.IPPROTO_UDP))
				if told := take(t, n, pod).Apart; len(told) != 1 || told[0].Destination.Port() != exception.other {
					t.Errorf("%s, of another port: told %+v", exception.name, told)
				}
			}
			if err := n.SetEgress(pod, Egress{Denied: true}); err != nil {
				t.Fatal(err)
			}
			if left := passes(t, guard, udp); left != (by == InForce) {
				t.Errorf("%s in table %d: passes what is in force %t", exception.name, by, left)
			}
		}
	}
}

// A flood to ever new destinations costs no more room than there is, and no packet is lost to the count; nor those of other pods.
func TestAFloodIsCountedAndBounded(t *testing.T) {
	n := load(t, netnstest.BPFFS(t))
	const flooder, other = 7<<40 | 1, 7<<40 | 2
	guards := map[uint64]*ebpf.Program{}
	for _, pod := range []uint64{flooder, other} {
		guards[pod] = loadGuardAt(t, n, GuardPlace{Cookie: pod, Last: true})
		if err := n.SetEgress(pod, Egress{Tried: true}); err != nil {
			t.Fatal(err)
		}
	}
	source, to := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("203.0.113.7:443")
	sum := func(all AllTried) (sum uint64) {
		for _, some := range all.Apart {
			sum += some.Packets
		}
		return sum
	}
	const sent = uint64(2*MaxTried + 17)
	for i := range uint32(sent) {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], 100<<24+i)
		if !passes(t, guards[flooder], frameTo(source, netip.AddrPortFrom(netip.AddrFrom4(ip), 443), unix.IPPROTO_UDP)) {
			t.Fatal("dropped")
		}
	}
	for range 3 {
		passes(t, guards[other], frameTo(source, to, unix.IPPROTO_UDP))
	}
	if all := take(t, n, flooder); len(all.Apart) != MaxTried || sum(all) != uint64(MaxTried) || all.Rest != sent-uint64(MaxTried) {
		t.Errorf("%d told apart, of %d packets, and %d more; %d were sent", len(all.Apart), sum(all), all.Rest, sent)
	}
	if all := take(t, n, other); len(all.Apart) != 0 || all.Rest != 3 {
		t.Errorf("beside the flood: %+v", all)
	}
	for range 3 {
		passes(t, guards[other], frameTo(source, to, unix.IPPROTO_UDP))
	}
	if all := take(t, n, other); len(all.Apart) != 1 || all.Apart[0] != (Tried{source, to, unix.IPPROTO_UDP, 3}) || all.Rest != 0 {
		t.Errorf("after the flood: %+v", all)
	}
	verdicts, err := n.Verdicts()
	if err != nil || verdicts["guard_tried"] != sent+6 {
		t.Errorf("%d packets were let pass on trial, %v", verdicts["guard_tried"], err)
	}
	for name, count := range verdicts {
		if strings.HasPrefix(name, "guard_dropped") && count > 0 {
			t.Errorf("%s: %d", name, count)
		}
	}
}

// What was counted outlives the process, and goes with the pod.
func TestWhatIsToldOutlivesTheProcess(t *testing.T) {
	pins := netnstest.BPFFS(t)
	n := load(t, pins)
	const pod = 7<<40 | 1
	guard := loadGuardAt(t, n, GuardPlace{Cookie: pod, Last: true})
	if err := n.SetEgress(pod, Egress{Tried: true}); err != nil {
		t.Fatal(err)
	}
	n.Close()
	frame := frameTo(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("203.0.113.7:443"), unix.IPPROTO_UDP)
	for range 2 {
		if !passes(t, guard, frame) {
			t.Error("dropped without a process")
		}
	}
	n = load(t, pins)
	if all := take(t, n, pod); len(all.Apart) != 1 || all.Apart[0].Packets != 2 {
		t.Errorf("in the next process: %+v", all)
	}
	passes(t, guard, frame)
	if err := n.RemoveGuard(pod); err != nil {
		t.Fatal(err)
	}
	if all := take(t, n, pod); len(all.Apart) != 0 || all.Rest != 0 {
		t.Errorf("left of a pod that is gone: %+v", all)
	}
}
