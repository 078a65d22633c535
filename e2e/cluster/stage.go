package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where things are inside a machine.
const (
	machineBin       = "/opt/kubernetes/bin" // read-only, from the cache
	machineImages    = "/run/images"         // read-only, from the state folder
	machineConfig    = "/etc/kubernetes"
	machineLogs      = "/var/log"
	containerdSocket = "/run/containerd/containerd.sock"
	machinePath      = machineBin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// stages are the hidden commands by which this binary runs itself.
var stages = map[string]func(args []string) error{
	"_enter":   enterStage,
	"_init":    initStage,
	"_agent":   agentStage,
	"_join":    joinStage,
	"_forward": forwardStage,
}

// boot is what the stages of a machine need to know; it travels in an
// argument, so that a process list shows whose machine it is.
type boot struct {
	Machine string // cp, n1, ...
	Cgroup  string // its group in every hierarchy
	Netns   string // name of its network namespace
	Disk    string // folder that outlives a power cut
	Bin     string // folder of the built binaries
	Images  string // folder of the image tars
}

func (b boot) encode() string {
	text, err := json.Marshal(b)
	if err != nil {
		panic(err) // strings alone always encode
	}
	return string(text)
}

func decodeBoot(args []string) (boot, error) {
	var b boot
	if len(args) != 1 {
		return b, errUsage
	}
	if err := json.Unmarshal([]byte(args[0]), &b); err != nil {
		return b, fmt.Errorf("read boot argument: %w", err)
	}
	return b, nil
}

// enterStage puts itself into the machine's cgroup and network, clones PID 1
// of the machine from there, and ends. The cgroup comes first: from then on
// whoever switches the machine off also ends us.
func enterStage(args []string) error {
	b, err := decodeBoot(args)
	if err != nil {
		return err
	}
	if err := joinCgroup(b.Cgroup); err != nil {
		return err
	}
	runtime.LockOSThread() // a child inherits the namespaces of the thread that clones it
	if err := enterNetns(b.Netns); err != nil {
		return err
	}
	init := exec.Command("/proc/self/exe", "_init", args[0])
	init.Env = os.Environ()
	init.Stdout, init.Stderr = os.Stdout, os.Stderr
	init.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		// The cgroup namespace's root is the group that we just joined: what
		// is attached at "the root cgroup" inside is seen by this machine only.
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
	}
	if err := init.Start(); err != nil {
		return fmt.Errorf("start PID 1: %w", err)
	}
	return nil
}

// initStage is PID 1 of a machine: it builds the root file system, starts the
// agent, and from then on only reaps. When the agent ends, so does the machine.
func initStage(args []string) error {
	b, err := decodeBoot(args)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(b.Machine)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := buildRoot(b); err != nil {
		return fmt.Errorf("build root file system: %w", err)
	}
	if err := makeCgroup("init"); err != nil {
		return err
	}
	if err := joinCgroup("init"); err != nil {
		return err
	}
	agent, err := os.StartProcess("/proc/self/exe", []string{"cluster", "_agent", args[0]}, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{nil, os.Stdout, os.Stderr},
	})
	if err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("reap: %w", err)
		case pid == agent.Pid:
			return fmt.Errorf("agent ended with status %d", status)
		}
	}
}

// joinStage runs a command in a cgroup: _join GROUP PROGRAM ARG...
func joinStage(args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	if err := joinCgroup(args[0]); err != nil {
		return err
	}
	program, err := exec.LookPath(args[1])
	if err != nil {
		return fmt.Errorf("find program: %w", err)
	}
	if err := syscall.Exec(program, args[1:], os.Environ()); err != nil {
		return fmt.Errorf("execute %s: %w", program, err)
	}
	return nil
}
