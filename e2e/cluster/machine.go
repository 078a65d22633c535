package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// machineGroup is the cgroup that holds all of a machine, in every hierarchy.
func (l layout) machineGroup(m machine) string { return filepath.Join(l.cgroup(), m.name) }

// powerOn starts a machine with what its disk holds. One that is on stays as
// it is; one that is half on, after a crash of ours, is switched off first.
func powerOn(l layout, m machine) error {
	if _, on := initPID(l, m); on {
		return nil
	}
	if err := powerOff(l, m); err != nil {
		return err
	}
	if err := plugIn(l, m); err != nil {
		return fmt.Errorf("plug in: %w", err)
	}
	if err := provision(l, m); err != nil {
		return fmt.Errorf("write disk: %w", err)
	}
	if err := makeCgroup(l.machineGroup(m)); err != nil {
		return err
	}
	return enterMachine(l, m)
}

// enterMachine starts the first of the stages (stage.go) and returns when the
// machine's PID 1 runs.
func enterMachine(l layout, m machine) error {
	console, err := os.OpenFile(filepath.Join(l.disk(m.name), "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	defer console.Close()
	boot := boot{
		Machine: m.name,
		Cgroup:  l.machineGroup(m),
		Netns:   l.netns(m.name),
		Disk:    l.disk(m.name),
		Bin:     filepath.Join(l.cache(), "bin"),
		Images:  l.images(),
	}
	cmd := exec.Command("/proc/self/exe", "_enter", boot.encode())
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + machinePath, "LANG=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("enter: %w\n%s", err, lastLines(console.Name(), 5))
	}
	return nil
}

// powerOff is a power cut: the cable first, so that nothing of the machine's
// death is heard on the wire, then all its processes at once. What is left
// then of its namespaces, mounts and pins goes with them.
func powerOff(l layout, m machine) error {
	if err := pullPlug(l, m); err != nil {
		return err
	}
	if err := killCgroup(l.machineGroup(m)); err != nil {
		return err
	}
	if err := unplug(l, m); err != nil {
		return err
	}
	return deleteNetns(l.netns(m.name))
}

// initPID finds a machine's PID 1, as the host numbers it.
func initPID(l layout, m machine) (pid int, on bool) {
	pids, err := processes(l.machineGroup(m))
	if err != nil {
		return 0, false
	}
	for _, pid := range pids {
		if isInit(pid) {
			return pid, true
		}
	}
	return 0, false
}

// isInit tells the first process of the namespace one level below ours: a
// pod's first process is two or more levels below.
func isInit(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			levels := strings.Fields(numbers)
			return len(levels) == 2 && levels[1] == "1"
		}
	}
	return false
}

// insideMachine is a command that runs in all of a machine's namespaces.
func insideMachine(l layout, m machine, args ...string) (*exec.Cmd, error) {
	pid, on := initPID(l, m)
	if !on {
		return nil, fmt.Errorf("%s is off", m.name)
	}
	group := filepath.Join(l.machineGroup(m), "exec")
	if err := makeCgroup(group); err != nil {
		return nil, err
	}
	target := fmt.Sprint(pid)
	cmd := exec.Command("/proc/self/exe", append([]string{"_join", group,
		"/usr/bin/nsenter", "--target", target, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}, args...)...)
	cmd.Env = []string{"PATH=" + machinePath, "HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM"),
		"CONTAINERD_ADDRESS=" + containerdSocket, "CONTAINERD_NAMESPACE=k8s.io"}
	return cmd, nil
}

// exec runs a command of the user inside a machine.
func (c *cluster) exec(name string, args []string) error {
	m, err := findMachine(name)
	if err != nil {
		return err
	}
	cmd, err := insideMachine(c.layout, m, args...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() > 0 {
		return commandExit(ended.ExitCode())
	}
	return err
}

// lastLines is the end of a log, for an error message.
func lastLines(path string, count int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// waitFor asks until the answer is yes.
func waitFor(what string, patience time.Duration, ask func() bool) error {
	deadline := time.Now().Add(patience)
	for !ask() {
		if time.Now().After(deadline) {
			return fmt.Errorf("wait %s for %s: %w", patience, what, os.ErrDeadlineExceeded)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}
