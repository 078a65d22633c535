package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchy is one mounted cgroup tree. A host has one of version 2, and may
// still have some of version 1 beside it (systemd calls that hybrid).
type hierarchy struct {
	mount   string
	v2      bool
	options string // how to mount the same version 1 tree elsewhere
}

// readHierarchies finds the cgroup trees of this host.
func readHierarchies() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer file.Close()
	return parseHierarchies(file)
}

func parseHierarchies(mountinfo io.Reader) ([]hierarchy, error) {
	var found []hierarchy
	unified := false
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// proc(5): ID parent device root mountpoint options [tags] - type source superoptions
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(super) < 3 || !strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			continue
		}
		switch super[0] {
		case "cgroup2":
			unified = true
			found = append(found, hierarchy{mount: fields[4], v2: true})
		case "cgroup":
			found = append(found, hierarchy{mount: fields[4], options: v1Options(super[2])})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	if !unified {
		return nil, errors.New("no cgroup2 below /sys/fs/cgroup: the mesh and this lab need it")
	}
	return found, nil
}

// v1Options leaves of a superblock's options what says which tree it is.
func v1Options(super string) string {
	var kept []string
	named := false
	for option := range strings.SplitSeq(super, ",") {
		if option == "rw" || option == "ro" {
			continue
		}
		named = named || strings.HasPrefix(option, "name=")
		kept = append(kept, option)
	}
	if named {
		// A named tree has no controller, and the kernel wants that said.
		kept = append([]string{"none"}, kept...)
	}
	return strings.Join(kept, ",")
}

// makeCgroup makes group in every hierarchy, with its parents.
func makeCgroup(group string) error {
	all, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		path := h.mount
		for part := range strings.SplitSeq(group, "/") {
			if h.v2 {
				if err := passControllersDown(path); err != nil {
					return err
				}
			}
			parent := path
			path = filepath.Join(path, part)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			// A version 1 cpuset takes no process before it has CPUs and memory.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				content, err := os.ReadFile(filepath.Join(parent, file))
				if h.v2 || errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(path, file), content, 0o644)
				}
				if err != nil {
					return fmt.Errorf("give cpuset its parent's %s: %w", file, err)
				}
			}
		}
	}
	return nil
}

// passControllersDown lets a version 2 group's children have its controllers.
// On a hybrid host there are hardly any: version 1 has them.
func passControllersDown(path string) error {
	controllers, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for _, controller := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if !strings.Contains(" "+strings.TrimSpace(string(controllers))+" ", " "+controller+" ") {
			continue
		}
		err := os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		// Busy while a machine's first process is about to move into a group
		// of its own: the next group that is made passes them down.
		if err != nil && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("pass controller %s down: %w", controller, err)
		}
	}
	return nil
}

// joinCgroup moves the calling process into group, in every hierarchy.
func joinCgroup(group string) error {
	all, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		procs := filepath.Join(h.mount, group, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// processes lists who lives in group or below, in any hierarchy.
func processes(group string) ([]int, error) {
	all, err := readHierarchies()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	var pids []int
	for _, h := range all {
		err := filepath.WalkDir(filepath.Join(h.mount, group), func(path string, entry fs.DirEntry, err error) error {
			if gone(err) {
				return nil
			}
			if err != nil || entry.Name() != "cgroup.procs" {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil && !gone(err) {
				return err
			}
			for field := range strings.FieldsSeq(string(content)) {
				// 0 is a process that our own process namespace cannot name.
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					pids = append(pids, pid)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of %s: %w", group, err)
		}
	}
	return pids, nil
}

// gone is what the kernel says of a group that is removed while we look.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// Processes die within milliseconds of SIGKILL, unless the kernel is busy
// freeing their memory.
const killPatience = 20 * time.Second

// killCgroup ends everything that lives in group, and removes it.
func killCgroup(group string) error {
	all, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if !h.v2 {
			continue
		}
		// The kernel kills all of the group at once, forks in flight included.
		err := os.WriteFile(filepath.Join(h.mount, group, "cgroup.kill"), []byte("1"), 0)
		if err != nil && !gone(err) {
			return fmt.Errorf("kill cgroup: %w", err)
		}
	}
	deadline := time.Now().Add(killPatience)
	for {
		pids, err := processes(group)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			// Only here for one that is in a version 1 group alone.
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(pids) == 0 {
			if err = removeCgroup(all, group); err == nil {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill cgroup %s: processes %v still there: %w", group, pids, errors.Join(err, os.ErrDeadlineExceeded))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func removeCgroup(all []hierarchy, group string) error {
	for _, h := range all {
		var folders []string
		err := filepath.WalkDir(filepath.Join(h.mount, group), func(path string, entry fs.DirEntry, err error) error {
			if gone(err) {
				return nil
			}
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list cgroups: %w", err)
		}
		for i := len(folders) - 1; i >= 0; i-- {
			if err := syscall.Rmdir(folders[i]); err != nil && !gone(err) {
				return fmt.Errorf("remove cgroup %s: %w", folders[i], err)
			}
		}
	}
	return nil
}
