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
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupVariable  = "TOPOLOGY_CGROUP"
	scratchVariable = "TOPOLOGY_SCRATCH"
	prefix          = "topology-" // of cgroup and folder, before the process id
)

// Isolated tells whether this process is one that RunIsolated made.
func Isolated() bool { return Cgroup() != "" }

// Cgroup is the cgroup2 folder that an isolated process and its children are in.
func Cgroup() string { return os.Getenv(cgroupVariable) }

// Scratch is a folder for mount points. Nothing may be written to it before
// MountScratch.
func Scratch() string { return os.Getenv(scratchVariable) }

// MountScratch makes Scratch a folder in memory, seen by this process and its
// children alone. It is to be called once.
func MountScratch() error {
	if !Isolated() {
		return errors.New("mount scratch folder: this process is not isolated")
	}
	if err := unix.Mount("scratch", Scratch(), "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount scratch folder: %w", err)
	}
	return nil
}

// RunIsolated runs this program again, isolated, and returns its exit status. It
// may have more namespaces of its own: with CLONE_NEWPID, all processes that it
// starts end with it, and it has to mount its own /proc.
func RunIsolated(namespaces ...uintptr) (int, error) {
	root, err := cgroupRoot()
	if err != nil {
		return 0, err
	}
	removeStale(root)
	name := prefix + strconv.Itoa(os.Getpid())
	cgroup := filepath.Join(root, name)
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return 0, fmt.Errorf("make cgroup: %w", err)
	}
	defer RemoveCgroup(cgroup)
	scratch := filepath.Join(os.TempDir(), name)
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return 0, fmt.Errorf("make scratch folder: %w", err)
	}
	defer os.Remove(scratch) // empty: what the child mounted there is gone
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()

	runtime.LockOSThread() // the child dies with the thread that made it
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), cgroupVariable+"="+cgroup, scratchVariable+"="+scratch)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.SysProcAttr = &unix.SysProcAttr{
		UseCgroupFD:  true,
		CgroupFD:     int(dir.Fd()),
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:    unix.SIGKILL,
	}
	for _, namespace := range namespaces {
		command.SysProcAttr.Cloneflags |= namespace
	}
	err = errors.Join(runToEnd(command), KillCgroup(cgroup)) // what it started may not have ended with it yet
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 0, fmt.Errorf("run isolated: %w", err)
	}
	return 0, nil
}

// runToEnd runs a command, which is told of signals that would end this process,
// so that this one can clean up after it.
func runToEnd(command *exec.Cmd) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(signals)
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				command.Process.Signal(s)
			case <-ended:
				return
			}
		}
	}()
	return command.Wait()
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

// removeStale removes what processes left that were killed.
func removeStale(root string) {
	for dir, remove := range map[string]func(string){
		root:         RemoveCgroup,
		os.TempDir(): func(folder string) { os.Remove(folder) },
	} {
		left, _ := filepath.Glob(filepath.Join(dir, prefix+"*"))
		for _, path := range left {
			pid := strings.TrimPrefix(filepath.Base(path), prefix)
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
				remove(path)
			}
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

// killTimeout is many times what the kernel needs to end processes.
const killTimeout = 5 * time.Second

// KillCgroup ends the processes of a cgroup and of those in it.
func KillCgroup(group string) error {
	if err := os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("end processes: %w", err)
	}
	for start := time.Now(); time.Since(start) < killTimeout; time.Sleep(5 * time.Millisecond) {
		events, err := os.ReadFile(filepath.Join(group, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("end processes: %w", err)
		}
		if strings.Contains(string(events), "populated 0") {
			return nil
		}
	}
	return fmt.Errorf("processes in %s do not end", group)
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
