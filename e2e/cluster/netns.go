package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// netnsFolder is where named network namespaces are, for us as for `ip netns`.
const netnsFolder = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsFolder, name) }

// onOwnThread runs f on a thread that ends with it, so that f may change the
// thread's namespaces without anybody else ever running in them.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime discards the thread
		result <- f()
	}()
	return <-result
}

// inNetns runs f inside a named network namespace.
func inNetns(name string, f func() error) error {
	return onOwnThread(func() error {
		if err := enterNetns(name); err != nil {
			return err
		}
		return f()
	})
}

// enterNetns moves the calling thread; the caller holds it.
func enterNetns(name string) error {
	fd, err := unix.Open(netnsPath(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// netnsExists tells a namespace from an empty file that a crash left behind.
func netnsExists(name string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(netnsPath(name), &stat) == nil && stat.Type == unix.NSFS_MAGIC
}

// createNetns makes a named network namespace, unless it exists.
func createNetns(name string) error {
	if netnsExists(name) {
		return nil
	}
	if err := shareNetnsFolder(); err != nil {
		return err
	}
	file, err := os.OpenFile(netnsPath(name), os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("name network namespace: %w", err)
	}
	file.Close()
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		own := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(own, netnsPath(name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("name network namespace %s: %w", name, err)
		}
		return nil
	})
}

// shareNetnsFolder makes the folder a shared mount, as `ip netns` does: if it
// came later and did so, it would hide our names below its mount.
func shareNetnsFolder() error {
	if err := os.MkdirAll(netnsFolder, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", netnsFolder, err)
	}
	err := unix.Mount("", netnsFolder, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsFolder, netnsFolder, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", netnsFolder, err)
		}
		err = unix.Mount("", netnsFolder, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsFolder, err)
	}
	return nil
}

// deleteNetns removes a name. The namespace itself goes with its last process
// and socket.
func deleteNetns(name string) error {
	if err := unix.Unmount(netnsPath(name), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	if err := os.Remove(netnsPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// unshareNetnsFolder undoes shareNetnsFolder once nobody has a name in it: the
// kernel refuses to unmount it as long as one is mounted there.
func unshareNetnsFolder() error {
	entries, err := os.ReadDir(netnsFolder)
	if err != nil || len(entries) > 0 {
		return nil
	}
	err = unix.Unmount(netnsFolder, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", netnsFolder, err)
	}
	return nil
}
