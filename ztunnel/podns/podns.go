// Package podns works in the network namespaces of pods.
//
// [Open] takes hold of a namespace, which lives on while it is held; [NetNS.Do] runs a function in it; [Scan] finds the
// namespaces that a container runtime keeps in a folder.
//
// A thread is in a foreign namespace only while the function given to [NetNS.Do] runs, and never returns to the
// scheduler unless it is back home. What is called there must not start goroutines that rely on the namespace: they run on
// threads of their own. Sockets, once made, stay in their namespace wherever they are used: make them in Do, use them
// outside.
//
// Whose namespace it is, and whether the addresses are those of the pod it is said to be, is for the caller to check.
package podns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A NetNS is a network namespace that is held open. Its methods may be called concurrently. After Close, Do and Control return
// an error and do nothing.
type NetNS struct {
	ns, home *os.File
	path     string
	inode    uint64
	cookie   uint64
}

// ErrNotNetNS is wrapped by Open if the file is no network namespace: a left-over mount point, or another kind.
var ErrNotNetNS = errors.New("not a network namespace")

// Open takes hold of the network namespace at path: /run/netns/NAME or /proc/PID/ns/net. It must not be called inside Do.
func Open(path string) (_ *NetNS, err error) {
	n := &NetNS{path: path}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.ns, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := checkNetNS(n.ns); err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(n.ns.Fd()), &stat); err != nil {
		return nil, fmt.Errorf("stat network namespace %s: %w", path, err)
	}
	n.inode = stat.Ino
	if n.home, err = openOwn(); err != nil {
		return nil, err
	}
	if n.cookie, err = n.readCookie(); err != nil {
		return nil, fmt.Errorf("read cookie of network namespace %s: %w", path, err)
	}
	return n, nil
}

// openOwn opens the namespace of the calling thread: the process's, for no thread leaves it but inside Do.
func openOwn() (*os.File, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return home, nil
}

func checkNetNS(f *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return ErrNotNetNS
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return err
	}
	if kind != unix.CLONE_NEWNET {
		return ErrNotNetNS
	}
	return nil
}

func (n *NetNS) readCookie() (cookie uint64, err error) {
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return cookie, err
}

// Close lets go of the namespace.
func (n *NetNS) Close() error {
	var errs []error
	for _, f := range []*os.File{n.ns, n.home} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Path is what the namespace was opened by.
func (n *NetNS) Path() string { return n.path }

// Inode identifies the namespace as long as it lives; another may bear the number afterwards.
func (n *NetNS) Inode() uint64 { return n.inode }

// Cookie identifies the namespace until the kernel restarts: it is never given to another.
func (n *NetNS) Cookie() uint64 { return n.cookie }

// Control runs f on the namespace's file descriptor, which is open meanwhile and stays the NetNS's.
func (n *NetNS) Control(f func(fd int) error) error { return control(n.ns, f) }

// control is never run on the number of a file that was closed: another may have it by then.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = f(int(fd)) }); err != nil {
		return err
	}
	return result
}

func enter(namespace *os.File) error {
	return control(namespace, func(fd int) error { return os.NewSyscallError("setns", unix.Setns(fd, unix.CLONE_NEWNET)) })
}

// Do runs f on a thread that is in the namespace, and returns f's error. Coming and going costs some 10 microseconds.
func (n *NetNS) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := enter(n.ns); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w", n.path, err)
			return
		}
		err := f()
		// Still locked, a goroutine takes its thread with it when it ends: no one gets a thread that is not home.
		if enter(n.home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Addrs returns the addresses of the namespace's interfaces, the loopback's excepted: an IPv4 address never as a mapped
// one, none with a zone.
func (n *NetNS) Addrs() (addrs []netip.Addr, err error) {
	err = n.Do(func() error {
		interfaces, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range interfaces {
			if i.Flags&net.FlagLoopback != 0 {
				continue
			}
			assigned, err := i.Addrs()
			if err != nil {
				return err
			}
			for _, a := range assigned {
				if prefix, err := netip.ParsePrefix(a.String()); err == nil {
					addrs = append(addrs, prefix.Addr().Unmap().WithZone(""))
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses in network namespace %s: %w", n.path, err)
	}
	return addrs, nil
}
