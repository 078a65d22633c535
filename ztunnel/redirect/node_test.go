package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// What a node lacks is told by a code, what was seen, and what to do.
func TestProblems(t *testing.T) {
	network := netnstest.New(t, "a")
	for _, lack := range []struct {
		code    Code
		without func(*Config)
	}{
		{BPFFSMissing, func(c *Config) { c.PinDir = filepath.Join(t.TempDir(), "ambit") }},
		{Cgroup2Missing, func(c *Config) { c.CgroupPath = t.TempDir() }},
		{Cgroup2Missing, func(c *Config) { c.CgroupPath = "/no/such/folder" }},
		{HostNetNSMissing, func(c *Config) { c.HostNetNS = "/no/such/namespace" }},
		{HostNetNSMissing, func(c *Config) { c.HostNetNS = "/proc/self/ns/mnt" }},
		{SkLookupMissing, func(c *Config) {
			c.Probe = func(kind ebpf.ProgramType) error {
				if kind == ebpf.SkLookup {
					return fmt.Errorf("program type %s: %w", kind, ebpf.ErrNotSupported)
				}
				return nil
			}
		}},
		{CapabilityMissing, func(c *Config) {
			c.Probe = func(ebpf.ProgramType) error { return fmt.Errorf("probe: %w", unix.EPERM) }
		}},
	} {
		config := configOf(t, network.Node("a"))
		lack.without(&config)
		_, err := Open(config)
		var problem *Problem
		if !errors.As(err, &problem) || problem.Code != lack.code {
			t.Errorf("%v, want %s", err, lack.code)
			continue
		}
		if !strings.HasSuffix(problem.Detail, ".") || !strings.HasSuffix(problem.Fix, ".") {
			t.Errorf("not sentences: %q, %q", problem.Detail, problem.Fix)
		}
		if !strings.HasPrefix(problem.Error(), string(lack.code)+": ") {
			t.Errorf("the code is not in %q", problem)
		}
	}
}

// The pins' folder is not made where it would be an ordinary one.
func TestNoFolderOutsideTheBPFFileSystem(t *testing.T) {
	network := netnstest.New(t, "a")
	config := configOf(t, network.Node("a"))
	config.PinDir = filepath.Join(t.TempDir(), "ambit")
	if _, err := Open(config); err == nil {
		t.Error("opened")
	}
	if _, err := os.Stat(config.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat %s: %v", config.PinDir, err)
	}
}

func TestFindCgroup2(t *testing.T) {
	const (
		v1      = "30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu"
		unified = "31 25 0:27 / /sys/fs/cgroup/unified rw,relatime shared:2 master:1 - cgroup2 cgroup2 rw"
		own     = "40 25 0:27 / /sys/fs/cgroup ro,relatime - cgroup2 cgroup rw"
		node    = "41 25 0:27 /../../.. /host/cgroup\\040root rw,relatime - cgroup2 cgroup2 rw"
		below   = "42 25 0:27 /kubepods/pod1 /mnt rw,relatime - cgroup2 cgroup2 rw"
	)
	for _, c := range []struct {
		name   string
		mounts []string
		want   string
	}{
		{"hybrid", []string{v1, unified}, "/sys/fs/cgroup/unified"},
		{"the node's beside the container's own", []string{own, node}, "/host/cgroup root"},
		{"in either order", []string{node, own}, "/host/cgroup root"},
		{"a part of it beside the whole", []string{below, unified}, "/sys/fs/cgroup/unified"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := FindCgroup2(mountinfo(t, c.mounts...))
			if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
	_, err := FindCgroup2(mountinfo(t, v1))
	var problem *Problem
	if !errors.As(err, &problem) || problem.Code != Cgroup2Missing {
		t.Errorf("without: %v, want %s", err, Cgroup2Missing)
	}
	if _, err := FindCgroup2("/no/such/file"); err == nil {
		t.Error("found in a file that is not there")
	}
}

func mountinfo(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
