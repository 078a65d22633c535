package topology

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A NetNS is a network namespace that lives until Close, and on as long as it
// has a process or a socket.
type NetNS struct {
	file *os.File
}

// NewNetNS makes a network namespace whose loopback is up.
func NewNetNS() (*NetNS, error) {
	made := make(chan error, 1)
	n := &NetNS{}
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	err := n.Do(func() error {
		// Addresses, the link-local ones included, are usable at once, not after a second of looking for duplicates.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("set up network namespace: %w", err)
	}
	return n, nil
}

// Close lets go of the namespace.
func (n *NetNS) Close() error { return n.file.Close() }

// Path is where the namespace can be opened, by other processes too.
func (n *NetNS) Path() string {
	return filepath.Join("/proc", fmt.Sprint(os.Getpid()), "fd", fmt.Sprint(n.file.Fd()))
}

// Enter takes the calling thread into the namespace; it has to be locked to its
// goroutine, and not to be given back.
func (n *NetNS) Enter() error {
	return os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET))
}

// Do runs f on a thread that is in the namespace.
func (n *NetNS) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
