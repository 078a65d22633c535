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
// [Main] runs the tests in a process with a mount namespace, a network namespace and a cgroup of its own: BPF programs are
// attached to [Cgroup], which holds the test and its applications and nothing else; mounts and namespaces end with the
// process, however it ends; and nothing that a test sends can reach the machine's network. Root is needed.
//
// Namespaces are held by file descriptors alone, so that there is nothing to clean up: their paths are in /proc.
package netnstest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	roleVariable   = "NETNSTEST_ROLE"
	cgroupVariable = "NETNSTEST_CGROUP"
	appRole        = "app"
	cgroupPrefix   = "netnstest-" // and the process id
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
	if os.Getenv(cgroupVariable) != "" {
		os.Exit(m.Run())
	}
	code, err := isolate()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netnstest:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// Cgroup is the cgroup2 folder that the test process and its applications are in.
func Cgroup() string { return os.Getenv(cgroupVariable) }

// isolate runs this program again, isolated, and returns its exit status.
func isolate() (int, error) {
	root, err := cgroupRoot()
	if err != nil {
		return 0, err
	}
	removeStale(root)
	cgroup := filepath.Join(root, cgroupPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return 0, fmt.Errorf("make cgroup: %w", err)
	}
	defer removeCgroup(cgroup)
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()

	runtime.LockOSThread() // the child dies with the thread that made it
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), cgroupVariable+"="+cgroup)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.SysProcAttr = &unix.SysProcAttr{
		UseCgroupFD:  true,
		CgroupFD:     int(dir.Fd()),
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:    unix.SIGKILL,
	}
	err = command.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 0, fmt.Errorf("run isolated: %w", err)
	}
	return 0, nil
}

// cgroupRoot finds the cgroup2 hierarchy, wherever it is mounted.
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("read mounts: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("no cgroup2 hierarchy is mounted")
}

// removeStale removes the cgroups of test runs that were killed.
func removeStale(root string) {
	groups, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	for _, group := range groups {
		pid := strings.TrimPrefix(filepath.Base(group), cgroupPrefix)
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
			removeCgroup(group)
		}
	}
}

// removeCgroup removes a cgroup without processes, and those in it.
func removeCgroup(group string) {
	entries, _ := os.ReadDir(group)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(group, e.Name()))
		}
	}
	os.Remove(group)
}

// AddCgroup makes a cgroup below Cgroup, with its parents, until the test ends.
func AddCgroup(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(Cgroup(), name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	top, _, _ := strings.Cut(name, "/")
	t.Cleanup(func() { removeCgroup(filepath.Join(Cgroup(), top)) })
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
