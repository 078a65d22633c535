// Package topology makes small clusters of network namespaces: nodes on one
// wire, pods behind the nodes' bridges.
//
//	isolate.go  the program again, where nothing that it does reaches the machine
//	netns.go    one network namespace
//	network.go  nodes, pods, and what joins them
//
// [RunIsolated] gives the program a mount namespace, a network namespace and a
// cgroup of its own: mounts and namespaces end with the process, however it
// ends, and what it sends cannot reach the machine's network. Root is needed.
//
// Invariants: namespaces are held by file descriptors alone, so that there is
// nothing to clean up; every address is one that the package gave out itself.
//
// What runs in the namespaces is the caller's business: applications of tests
// are netnstest's, processes of a mesh those of e2e/bench/simulated.
package topology

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

	"golang.org/x/sys/unix"
)

const (
	cgroupVariable = "TOPOLOGY_CGROUP"
	cgroupPrefix   = "topology-" // and the process id
)

// Isolated tells whether this process is one that RunIsolated made.
func Isolated() bool { return Cgroup() != "" }

// Cgroup is the cgroup2 folder that an isolated process and its children are in.
func Cgroup() string { return os.Getenv(cgroupVariable) }

// RunIsolated runs this program again, isolated, and returns its exit status.
func RunIsolated() (int, error) {
	root, err := cgroupRoot()
	if err != nil {
		return 0, err
	}
	removeStale(root)
	cgroup := filepath.Join(root, cgroupPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return 0, fmt.Errorf("make cgroup: %w", err)
	}
	defer RemoveCgroup(cgroup)
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

// removeStale removes the cgroups of processes that were killed.
func removeStale(root string) {
	groups, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	for _, group := range groups {
		pid := strings.TrimPrefix(filepath.Base(group), cgroupPrefix)
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
			RemoveCgroup(group)
		}
	}
}

// AddCgroup makes a cgroup below Cgroup, with its parents.
func AddCgroup(name string) (string, error) {
	path := filepath.Join(Cgroup(), name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	return path, nil
}

// RemoveCgroup removes a cgroup without processes, and those in it.
func RemoveCgroup(group string) {
	entries, _ := os.ReadDir(group)
	for _, e := range entries {
		if e.IsDir() {
			RemoveCgroup(filepath.Join(group, e.Name()))
		}
	}
	os.Remove(group)
}
