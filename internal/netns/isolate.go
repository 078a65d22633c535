package netns

import (
	"context"
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
	cgroupVariable = "AMBIT_NETNS_CGROUP"
	cgroupPrefix   = "ambit-netns-" // and the process id
)

// Isolated tells whether this process is one that Isolate started, or its child.
func Isolated() bool { return os.Getenv(cgroupVariable) != "" }

// Cgroup is the cgroup2 folder that an isolated process and its children are in.
func Cgroup() string { return os.Getenv(cgroupVariable) }

// Isolate runs this program again, with the same arguments, in a mount namespace, a network namespace and a cgroup of its own,
// and returns its exit status. Nothing that it sends can reach the machine's network, and mounts and namespaces end with it,
// however it ends. extra are more namespaces, such as CLONE_NEWPID: there processes too end with it, and MountProc gives it
// a /proc that shows them. When ctx ends, the program is asked to end with SIGTERM.
func Isolate(ctx context.Context, extra uintptr) (int, error) {
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
	command := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	command.Cancel = func() error { return command.Process.Signal(unix.SIGTERM) }
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), cgroupVariable+"="+cgroup)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.SysProcAttr = &unix.SysProcAttr{
		UseCgroupFD:  true,
		CgroupFD:     int(dir.Fd()),
		Cloneflags:   extra,
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

// MountProc gives a process in a PID namespace of its own the /proc of that namespace.
func MountProc() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
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

// removeStale removes the cgroups of runs that were killed.
func removeStale(root string) {
	groups, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	for _, group := range groups {
		pid := strings.TrimPrefix(filepath.Base(group), cgroupPrefix)
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
			RemoveCgroup(group)
		}
	}
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
