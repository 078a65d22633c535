package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/topology"
)

func TestMain(m *testing.M) { netnstest.Main(m, nil) }

func TestCPUTicksAreUserAndSystemTime(t *testing.T) {
	// The name holds what looks like the end of a name.
	const stat = "77 (a) b (c) S 1 70 70 0 -1 4194560 1 2 3 4 120 34 5 6 20 0 1 0 100 1 1"
	ticks, err := cpuTicks(stat)
	if err != nil || ticks != 154 {
		t.Errorf("got %d, %v, want 120+34", ticks, err)
	}
	if fields, err := statFields(stat); err != nil || fields[statGroup] != "70" {
		t.Errorf("process group of %v, %v, want 70", fields, err)
	}
	for _, malformed := range []string{"", "77 (a", "77 (a) S 1 2", "77 (a) S 1 70 70 0 -1 4194560 1 2 3 4 x 34 5"} {
		if _, err := cpuTicks(malformed); err == nil {
			t.Errorf("%q was read", malformed)
		}
	}
}

func TestMemoryIsTheProportionalSetSize(t *testing.T) {
	const rollup = "00400000-7ffe [rollup]\nRss:                9000 kB\nPss:                1500 kB\nPss_Anon:           700 kB\n"
	if bytes, err := parsePSS(rollup); err != nil || bytes != 1500<<10 {
		t.Errorf("got %d, %v", bytes, err)
	}
	if _, err := parsePSS("Rss: 1 kB\n"); err == nil {
		t.Error("a file without Pss was read")
	}
}

func TestCostOfAProgramAndItsChildren(t *testing.T) {
	ns := netnstest.NewNetNS(t)
	p := start(t, ns.NetNS, "sh -c 'while :; do :; done' & while :; do :; done")
	deadline := time.Now().Add(5 * time.Second)
	for len(p.Tree()) < 2 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	pids := p.Tree()
	if len(pids) != 2 {
		t.Fatalf("processes %v, want the shell and its child", pids)
	}
	before, err := CPU(pids)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	after, err := CPU(pids)
	if err != nil || after-before < 50*time.Millisecond {
		t.Errorf("two busy loops used %s in 300 ms (%v)", after-before, err)
	}
	if memory, err := Memory(pids); err != nil || memory <= 0 {
		t.Errorf("memory %d, %v", memory, err)
	}
	every, err := CPUs()
	if err != nil {
		t.Fatal(err)
	}
	one := OneOf(every)
	if one.Count() != 1 {
		t.Fatalf("%d CPUs, want one", one.Count())
	}
	if err := Pin(pids, one); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		var got unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &got); err != nil || got != one {
			t.Errorf("process %d may use %d CPUs, %v", pid, got.Count(), err)
		}
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if left := p.Tree(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestProgramRunsInItsNamespace(t *testing.T) {
	ns := netnstest.NewNetNS(t)
	p := start(t, ns.NetNS, "exec sleep 30")
	theirs, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(p.Pid()), "ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	var want string
	if err := ns.Do(func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	if theirs != want {
		t.Errorf("it runs in %s, want %s", theirs, want)
	}
}

func TestProgramThatEndsByItselfIsAnErrorWithItsLastWords(t *testing.T) {
	p := start(t, netnstest.NewNetNS(t).NetNS, "echo no such file >&2; exit 3")
	<-p.ended
	for _, err := range []error{p.Alive(), p.Stop()} {
		if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("got %v", err)
		}
	}
}

func TestProgramThatIgnoresTheSignalIsStopped(t *testing.T) {
	p := start(t, netnstest.NewNetNS(t).NetNS, "trap '' TERM; while :; do sleep 0.1; done")
	time.Sleep(200 * time.Millisecond) // until the trap is set
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if left := p.Tree(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func start(t *testing.T, ns *topology.NetNS, script string) *Process {
	t.Helper()
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(In(ns), Program{Args: []string{shell, "-c", script}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}
