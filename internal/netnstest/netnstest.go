// Package netnstest gives tests a small cluster of network namespaces: nodes, pods and applications in them.
//
//	func TestMain(m *testing.M) { netnstest.Main(m, nil) }
//
//	network := netnstest.New(t, "a", "b")       // two nodes on one wire
//	shop := network.Node("a").Pod("shop")       // dual-stack, behind the node's bridge
//	server := shop.Start()                      // a process in the pod
//	server.Listen("[::]:8080")
//	conn, err := network.Node("b").Pod("client").Start().Dial(netip.AddrPortFrom(shop.IPv4, 8080))
//
// [Main] runs the tests isolated, as package topology does it: BPF programs are attached to [Cgroup], which holds the test
// and its applications and nothing else, and nothing that a test sends can reach the machine's network. Root is needed.
//
// Nodes and pods are topology's; here they end with the test, and what fails fails it.
package netnstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/topology"
)

const (
	roleVariable = "NETNSTEST_ROLE"
	appRole      = "app"
)

// Main is to be called by TestMain. roles are functions that a test runs as processes of their own, with [Start].
func Main(m *testing.M, roles map[string]func()) {
	if role := os.Getenv(roleVariable); role != "" {
		if role == appRole {
			appMain()
		} else {
			roles[role]()
		}
		os.Exit(0)
	}
	if topology.Isolated() {
		os.Exit(m.Run())
	}
	code, err := topology.RunIsolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netnstest:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// Cgroup is the cgroup2 folder that the test process and its applications are in.
func Cgroup() string { return topology.Cgroup() }

// AddCgroup makes a cgroup below Cgroup, with its parents, until the test ends.
func AddCgroup(t testing.TB, name string) string {
	t.Helper()
	path, err := topology.AddCgroup(name)
	if err != nil {
		t.Fatal(err)
	}
	top, _, _ := strings.Cut(name, "/")
	t.Cleanup(func() { topology.RemoveCgroup(filepath.Join(Cgroup(), top)) })
	return path
}

// BPFFS mounts a BPF file system for the test, and returns its folder.
func BPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the BPF file system: %v", err)
		}
	})
	return dir
}
