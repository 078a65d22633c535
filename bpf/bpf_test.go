package bpf

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m, nil) }

func load(t testing.TB, pins string) *Node {
	t.Helper()
	n, err := Load(pins, Host{Cookie: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func TestEveryVerdictHasAName(t *testing.T) {
	verdicts, err := load(t, netnstest.BPFFS(t)).Verdicts()
	if err != nil {
		t.Fatal(err)
	}
	if len(verdicts) != int(connectVerdictVERDICT_COUNT) {
		t.Errorf("%d names of %d verdicts: two share one", len(verdicts), connectVerdictVERDICT_COUNT)
	}
	for name := range verdicts {
		decision, _, _ := strings.Cut(name, "_")
		if name != strings.ToLower(name) || !slices.Contains([]string{"connect", "dns", "guard", "hold", "permit", "steer"}, decision) {
			t.Errorf("verdict %q", name)
		}
	}
}

// What is enrolled outlives the process, with the pods' addresses; the listeners do not.
func TestMapsArePinned(t *testing.T) {
	pins := netnstest.BPFFS(t)
	n := load(t, pins)
	want := map[uint64]Enrolment{
		7: {UID: "dual", IPv4: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParseAddr("fd00::1")},
		8: {UID: strings.Repeat("x", MaxUID), IPv4: netip.MustParseAddr("10.0.0.2")},
		9: {UID: "six", IPv6: netip.MustParseAddr("fd00::3")},
	}
	for cookie, e := range want {
		if err := n.Enrol(cookie, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.AddPod(want[7].IPv4, 7); err != nil {
		t.Fatal(err)
	}
	n.Close()
	n = load(t, pins)
	got, err := n.Enrolled()
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("enrolled %v, %v; want %v", got, err, want)
	}
	pods, err := n.Pods()
	if err != nil || !maps.Equal(pods, map[netip.Addr]uint64{want[7].IPv4: 7}) {
		t.Errorf("pods %v, %v", pods, err)
	}
	for _, name := range []string{connectMapMeshListeners, connectMapMeshHeld} {
		if _, err := os.Stat(filepath.Join(pins, name)); !os.IsNotExist(err) {
			t.Errorf("%s is pinned: %v", name, err)
		}
	}
}

func TestWithdrawAndRemove(t *testing.T) {
	n := load(t, netnstest.BPFFS(t))
	ip := netip.MustParseAddr("10.0.0.1")
	for range 2 { // the second time there is nothing to do
		if err := n.Withdraw(7); err != nil {
			t.Error(err)
		}
		if err := n.RemovePod(ip, 7); err != nil {
			t.Error(err)
		}
	}
	if err := n.AddPod(ip, 8); err != nil {
		t.Fatal(err)
	}
	if err := n.RemovePod(ip, 7); err != nil {
		t.Error(err)
	}
	if pods, err := n.Pods(); err != nil || pods[ip] != 8 {
		t.Errorf("the address went with a pod that no longer had it: %v, %v", pods, err)
	}
}

func TestLimits(t *testing.T) {
	n := load(t, netnstest.BPFFS(t))
	if err := n.Enrol(7, Enrolment{UID: strings.Repeat("x", MaxUID+1)}); err == nil {
		t.Error("a UID that is too long was cut")
	}
	if _, err := n.LoadSteer(Steering{Slot: uint32(MaxPods)}); err == nil {
		t.Error("a program was loaded for a slot that is not there")
	}
	if _, err := Load(netnstest.BPFFS(t), Host{PodCgroups: make([]uint64, MaxPodCgroups+1)}); err == nil {
		t.Error("a cgroup of pods was dropped")
	}
	steer, err := n.LoadSteer(Steering{Slot: uint32(MaxPods - 1)})
	if err != nil {
		t.Fatal(err)
	}
	steer.Close()
	if _, err := n.LoadHold(Steering{Slot: uint32(MaxPods)}); err == nil {
		t.Error("a program was loaded for a slot that is not there")
	}
	hold, err := n.LoadHold(Steering{Slot: uint32(MaxPods - 1)})
	if err != nil {
		t.Fatal(err)
	}
	hold.Close()
	for i := range MaxPods {
		if err := n.Enrol(uint64(i), Enrolment{UID: "pod"}); err != nil {
			t.Fatalf("pod %d of %d: %v", i, MaxPods, err)
		}
	}
}

// The objects are compiled by one version of one compiler, which not every
// machine has: this proves on every machine that they are of these sources.
func TestObjectsAreOfTheseSources(t *testing.T) {
	recorded, err := os.ReadFile("sources.sha256")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("*.[ch]")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	var now strings.Builder
	for _, name := range sources {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&now, "%x  %s\n", sha256.Sum256(content), name)
	}
	if now.String() != string(recorded) {
		t.Errorf("the C sources are not those that the committed objects were made of: run make generate with clang-14 and commit the result\nnow:\n%srecorded:\n%s", now.String(), recorded)
	}
}

// What is told of a pod's way out is what is read, of that pod alone, by the same policies, and goes with it.
func TestEgressIsThePodsOwn(t *testing.T) {
	n := load(t, netnstest.BPFFS(t))
	const pod, other = 7<<40 | 1, 7<<40 | 2
	told := map[Table]struct {
		ranges []netip.Prefix
		names  []netip.Addr
	}{
		InForce: {
			[]netip.Prefix{
				netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.1/32"),
				netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("fd00::1/128"),
			},
			[]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		},
		OnTrial: {
			[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")},
			[]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		},
	}
	for _, cookie := range []uint64{pod, other} {
		if err := n.SetEgress(cookie, Egress{Denied: true, Tried: cookie == other, DNS: cookie == pod}); err != nil {
			t.Fatal(err)
		}
		for by, all := range told {
			for _, r := range all.ranges {
				if err := n.AllowRange(by, cookie, r, Allowance{UDP: []PortRange{{53, 53}}}); err != nil {
					t.Fatal(err)
				}
			}
			for _, ip := range all.names {
				if err := n.AllowName(by, cookie, ip, Allowance{Every: true}, time.Minute); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := n.AllowRange(InForce, pod, told[InForce].ranges[0], Allowance{UDP: make([]PortRange, MaxUDPRanges+1)}); err == nil {
		t.Error("ranges of ports were dropped")
	}
	expect := func(when string, cookie uint64, egress Egress, there bool) {
		t.Helper()
		gotEgress, err := n.Egress(cookie)
		if err != nil || gotEgress != egress {
			t.Errorf("%s: %+v, %v", when, gotEgress, err)
		}
		for by, want := range told {
			if !there {
				want.ranges, want.names = nil, nil
			}
			ranges, err := n.Ranges(by, cookie)
			slices.SortFunc(ranges, netip.Prefix.Compare)
			slices.SortFunc(want.ranges, netip.Prefix.Compare)
			if err != nil || !slices.Equal(ranges, want.ranges) {
				t.Errorf("%s, table %d: %v, %v", when, by, ranges, err)
			}
			names, err := n.Names(by, cookie)
			slices.SortFunc(names, netip.Addr.Compare)
			if err != nil || !slices.Equal(names, want.names) {
				t.Errorf("%s, table %d: %v, %v", when, by, names, err)
			}
		}
	}
	expect("told", pod, Egress{Denied: true, DNS: true}, true)
	if left, err := n.NameLeft(InForce, pod, told[InForce].names[0]); err != nil || left <= 0 || left > time.Minute {
		t.Errorf("left %v, %v", left, err)
	}
	for range 2 { // the second time there is nothing to do
		if err := n.RemoveGuard(pod); err != nil {
			t.Fatal(err)
		}
	}
	expect("removed", pod, Egress{}, false)
	expect("the other", other, Egress{Denied: true, Tried: true}, true)
}
