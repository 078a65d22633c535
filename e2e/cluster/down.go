package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// down removes everything that carries the cluster's name. It reads no
// record, so that it works whatever was half done.
func (c *cluster) down() error {
	began := time.Now()
	if err := killCgroup(c.cgroup()); err != nil {
		return err
	}
	names, err := c.ownNetns()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := deleteNetns(name); err != nil {
			return err
		}
	}
	if err := unshareNetnsFolder(); err != nil {
		return err
	}
	if err := c.removeState(); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "cluster is down after %.1fs\n", time.Since(began).Seconds())
	return nil
}

// ownNetns lists the network namespaces of any version of the plan.
func (c *cluster) ownNetns() ([]string, error) {
	entries, err := os.ReadDir(netnsFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	own := regexp.MustCompile("^" + regexp.QuoteMeta(c.name) + "-(" + controlPlane + "|" + switchName + "|n[0-9]+)$")
	var names []string
	for _, entry := range entries {
		if own.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// removeState removes the state folder. Machines mount in namespaces of their
// own, so nothing can be mounted there; if something is, it is not deleted
// through the mount.
func (c *cluster) removeState() error {
	mounts, err := mountsBelow(c.state)
	if err != nil {
		return err
	}
	for _, mount := range slices.Backward(mounts) {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", mount, err)
		}
	}
	if err := os.RemoveAll(c.state); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

func mountsBelow(folder string) ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer file.Close()
	var found []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4]+"/", filepath.Clean(folder)+"/") {
			found = append(found, fields[4])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return found, nil
}
