package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// buildRoot gives the calling process, PID 1 of a machine in a mount
// namespace of its own, the machine's file system:
//
//	/usr          the host's, read-only, with /bin, /lib and their like
//	/etc          the host's below, the machine's disk above
//	/var /opt     the machine's disk
//	/run /tmp     memory, lost with the machine, as is all else
//	/proc /sys    fresh, showing the machine's own namespaces
//
// The kernel frees all of it when the last process of the machine is gone.
func buildRoot(b boot) error {
	// Nothing of what follows reaches the host, nor anything of the host us.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("separate mounts: %w", err)
	}
	hierarchies, err := readHierarchies()
	if err != nil {
		return err
	}
	r := root(filepath.Join(b.Disk, "root"))
	if err := os.MkdirAll(string(r), 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount("tmpfs", string(r), "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	steps := []func() error{
		r.system,
		func() error { return r.disk(b) },
		r.kernel,
		func() error { return r.cgroups(hierarchies) },
		r.runtime,
		func() error { return r.bindReadOnly(b.Bin, machineBin) },
		func() error { return r.bindReadOnly(b.Images, machineImages) },
		r.fakeKernelSettings,
		r.pivot,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// root is the folder that becomes /.
type root string

func (r root) path(inside string) string { return filepath.Join(string(r), inside) }

// mount mounts a file system on a folder, which it makes.
func (r root) mount(kind, inside string, flags uintptr, options string) error {
	if err := os.MkdirAll(r.path(inside), 0o755); err != nil {
		return fmt.Errorf("make mount point %s: %w", inside, err)
	}
	if err := unix.Mount(kind, r.path(inside), kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, inside, err)
	}
	return nil
}

// bind shows a folder of the host, with what is mounted below it.
func (r root) bind(host, inside string) error {
	if err := os.MkdirAll(r.path(inside), 0o755); err != nil {
		return fmt.Errorf("make mount point %s: %w", inside, err)
	}
	if err := unix.Mount(host, r.path(inside), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", host, inside, err)
	}
	return nil
}

func (r root) bindReadOnly(host, inside string) error {
	if err := r.bind(host, inside); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, r.path(inside), unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", inside, err)
	}
	return nil
}

// system shows the host's programs and libraries.
func (r root) system() error {
	if err := r.bindReadOnly("/usr", "/usr"); err != nil {
		return err
	}
	for _, folder := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		stat, err := os.Lstat(folder)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("look at %s: %w", folder, err)
		case stat.IsDir():
			err = r.bindReadOnly(folder, folder)
		default: // a link into /usr
			var target string
			if target, err = os.Readlink(folder); err == nil {
				err = os.Symlink(target, r.path(folder))
			}
		}
		if err != nil {
			return fmt.Errorf("show %s: %w", folder, err)
		}
	}
	for _, folder := range []string{"/root", "/home", "/mnt", "/srv"} {
		if err := os.Mkdir(r.path(folder), 0o755); err != nil {
			return fmt.Errorf("make %s: %w", folder, err)
		}
	}
	if err := os.Mkdir(r.path("/tmp"), 0o777); err != nil {
		return fmt.Errorf("make /tmp: %w", err)
	}
	if err := os.Chmod(r.path("/tmp"), 0o777|fs.ModeSticky); err != nil {
		return fmt.Errorf("open /tmp: %w", err)
	}
	return nil
}

// disk mounts what outlives a power cut.
func (r root) disk(b boot) error {
	options := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", etcUpper(b.Disk), filepath.Join(b.Disk, "etc.work"))
	if err := r.mount("overlay", "/etc", 0, options); err != nil {
		return err
	}
	for _, folder := range []string{"/var", "/opt"} {
		if err := r.bind(filepath.Join(b.Disk, folder), folder); err != nil {
			return err
		}
	}
	return nil
}

// etcUpper is the folder on the disk that holds what the machine's /etc has
// more than the host's.
func etcUpper(disk string) string { return filepath.Join(disk, "etc") }

// kernel mounts the kernel's own file systems.
func (r root) kernel() error {
	if err := r.mount("proc", "/proc", 0, ""); err != nil {
		return err
	}
	if err := r.mount("sysfs", "/sys", 0, ""); err != nil {
		return err
	}
	if err := r.mount("bpf", "/sys/fs/bpf", 0, "mode=700"); err != nil {
		return err
	}
	// Tools look for these, but a kernel may be built without them.
	for kind, folder := range map[string]string{"tracefs": "/sys/kernel/tracing", "debugfs": "/sys/kernel/debug"} {
		if _, err := os.Stat(r.path(folder)); err != nil {
			continue
		}
		if err := r.mount(kind, folder, 0, ""); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	if err := r.bind("/dev", "/dev"); err != nil {
		return err
	}
	return r.mount("tmpfs", "/dev/shm", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
}

// cgroups mounts every hierarchy where the host has it. In our cgroup
// namespace its root is the machine's own group.
func (r root) cgroups(all []hierarchy) error {
	if len(all) > 1 {
		if err := r.mount("tmpfs", "/sys/fs/cgroup", 0, "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range all {
		kind := "cgroup"
		if h.v2 {
			kind = "cgroup2"
		}
		if err := r.mount(kind, h.mount, 0, h.options); err != nil {
			return err
		}
	}
	return nil
}

// runtime makes /run, where every power-on starts from nothing.
func (r root) runtime() error {
	if err := r.mount("tmpfs", "/run", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, folder := range []string{"/run/lock", netnsFolder} {
		if err := os.MkdirAll(r.path(folder), 0o755); err != nil {
			return fmt.Errorf("make %s: %w", folder, err)
		}
	}
	return nil
}

// fakeKernelSettings shows the kubelet the values that it insists on. They
// are the whole host's, and the kubelet would set them. The boot ID is new at
// every power-on, by which Kubernetes sees that a node has restarted.
func (r root) fakeKernelSettings() error {
	folder := "/run/kernel-settings"
	if err := os.Mkdir(r.path(folder), 0o755); err != nil {
		return fmt.Errorf("make %s: %w", folder, err)
	}
	for setting, value := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
		"kernel/random/boot_id":     newUUID(),
	} {
		fake := r.path(filepath.Join(folder, filepath.Base(setting)))
		if err := os.WriteFile(fake, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("write setting: %w", err)
		}
		if err := unix.Mount(fake, r.path(filepath.Join("/proc/sys", setting)), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover setting %s: %w", setting, err)
		}
	}
	return nil
}

// newUUID is a random one (RFC 9562 section 5.4).
func newUUID() string {
	var u [16]byte
	rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// pivot makes the folder / and forgets the host's file system. From here on
// mounts spread to the containers that ask for it (HostToContainer).
func (r root) pivot() error {
	if err := os.Chdir(string(r)); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	// With both names the same, the old root ends up on top of the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}
