package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Machine is one of the lab's: cp, n1, n2, n3.
type Machine struct {
	Name string
	bed  *Bed
}

// Machine returns one of the lab's.
func (b *Bed) Machine(name string) Machine { return Machine{Name: name, bed: b} }

// clusterName is as of e2e/cluster.
func clusterName() string {
	if name := os.Getenv("AMBIT_CLUSTER_NAME"); name != "" {
		return name
	}
	return "ambit"
}

// Namespace is the path of its network namespace; what is there changes with a
// power cut.
func (m Machine) Namespace() string { return "/run/netns/" + clusterName() + "-" + m.Name }

// Disk is a path below /var or /opt of the machine, as this process sees it.
func (m Machine) Disk(path string) string {
	return filepath.Join(m.bed.root, ".cluster", "nodes", m.Name, path)
}

// Exec runs a command in all namespaces of the machine.
func (m Machine) Exec(ctx context.Context, args ...string) (string, error) {
	return m.bed.Run(ctx, "cluster", append([]string{"exec", m.Name}, args...)...)
}

// Shell runs a script in all namespaces of the machine.
func (m Machine) Shell(ctx context.Context, script string) (string, error) {
	return m.Exec(ctx, "sh", "-euc", script)
}

// Process is one of a machine's, as this process sees it.
type Process struct {
	PID int
	// Cgroup is its path in the unified hierarchy.
	Cgroup string
}

// Processes are those of the machine whose program has a name (15 characters at
// most).
func (m Machine) Processes(name string) ([]Process, error) {
	folders, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, folder := range folders {
		pid, err := strconv.Atoi(folder.Name())
		if err != nil {
			continue
		}
		// Whatever cannot be read has just ended.
		comm, err := os.ReadFile(filepath.Join("/proc", folder.Name(), "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if cgroup, ok := unifiedCgroup(pid); ok && strings.HasPrefix(cgroup, "/"+clusterName()+"-cluster/"+m.Name+"/") {
			found = append(found, Process{PID: pid, Cgroup: cgroup})
		}
	}
	return found, nil
}

func unifiedCgroup(pid int) (string, bool) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(content)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path), true
		}
	}
	return "", false
}

// Signal sends a signal to all of the machine's processes of a name, and returns
// how many there were.
func (m Machine) Signal(name string, signal syscall.Signal) (int, error) {
	all, err := m.Processes(name)
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if err := syscall.Kill(p.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, fmt.Errorf("signal %s of %s: %w", name, m.Name, err)
		}
	}
	return len(all), nil
}
