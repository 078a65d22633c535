package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// layout says where everything is kept, and how things are called on this
// machine.
type layout struct {
	checkout string // root of the source tree
	state    string // everything of the running cluster; removed by down
	cacheTop string // built things, of all versions
	name     string // prefix of network namespaces and cgroups
	versions versions
}

// clusterName bounds AMBIT_CLUSTER_NAME: it ends up in paths and interface
// names.
var clusterName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// findLayout looks for the source tree upwards from the working folder.
func findLayout() (layout, error) {
	checkout, err := findCheckout()
	if err != nil {
		return layout{}, err
	}
	l := layout{
		checkout: checkout,
		state:    os.Getenv("AMBIT_CLUSTER_DIR"),
		cacheTop: os.Getenv("AMBIT_CACHE"),
		name:     os.Getenv("AMBIT_CLUSTER_NAME"),
	}
	if l.state == "" {
		l.state = filepath.Join(checkout, ".cluster")
	}
	if l.state, err = filepath.Abs(l.state); err != nil {
		return layout{}, fmt.Errorf("resolve state folder: %w", err)
	}
	if l.cacheTop == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			return layout{}, fmt.Errorf("find cache folder: %w", err)
		}
		l.cacheTop = filepath.Join(home, "ambit")
	}
	if l.cacheTop, err = filepath.Abs(l.cacheTop); err != nil {
		return layout{}, fmt.Errorf("resolve cache folder: %w", err)
	}
	if l.name == "" {
		l.name = "ambit"
	}
	if !clusterName.MatchString(l.name) {
		return layout{}, fmt.Errorf("AMBIT_CLUSTER_NAME %q: want %s", l.name, clusterName)
	}
	l.versions, err = readVersions(l.module())
	return l, err
}

func findCheckout() (string, error) {
	folder, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find working folder: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "e2e/cluster/go.mod")); err == nil {
			return folder, nil
		}
		parent := filepath.Dir(folder)
		if parent == folder {
			return "", errors.New("find e2e/cluster: run this inside a checkout of Ambit")
		}
		folder = parent
	}
}

// module is the folder of this Go module.
func (l layout) module() string { return filepath.Join(l.checkout, "e2e/cluster") }

// cache holds the binaries and images of the pinned versions.
func (l layout) cache() string { return filepath.Join(l.cacheTop, "cluster", l.versions.key()) }

// binary is the path of a built program.
func (l layout) binary(name string) string { return filepath.Join(l.cache(), "bin", name) }

// pki holds the certificates of all machines and of the user.
func (l layout) pki() string { return filepath.Join(l.state, "pki") }

// kubeconfig is the user's way in, through the forwarder.
func (l layout) kubeconfig() string { return filepath.Join(l.state, "kubeconfig") }

// images holds the tars that every node imports when it starts.
func (l layout) images() string { return filepath.Join(l.state, "images") }

// disk is what a machine finds again after a power cut.
func (l layout) disk(machine string) string { return filepath.Join(l.state, "nodes", machine) }

// netns is the name of a machine's network namespace under /run/netns.
func (l layout) netns(machine string) string { return l.name + "-" + machine }

// cgroup is the cluster's folder in every cgroup hierarchy.
func (l layout) cgroup() string { return l.name + "-cluster" }

// locked runs f while no other command changes the cluster of this name, from
// whatever checkout.
func (l layout) locked(f func() error) error {
	file, err := os.OpenFile(filepath.Join("/run/lock", l.cgroup()), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	defer file.Close()
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		fmt.Fprintln(os.Stderr, "waiting for another cluster command to end")
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
			return fmt.Errorf("take lock: %w", err)
		}
	}
	return f()
}
