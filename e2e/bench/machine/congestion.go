package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	allowedControls = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
	// allowedLock is held by all benchmarks that run; in it stands the list
	// that was there before them.
	allowedLock = "/run/lock/ambit-bench-congestion"
)

// AllowCongestion puts the congestion control on the machine's list of those
// that other network namespaces may choose. undo restores the list, if no other
// benchmark runs that wants it; should this one be killed, the next one does.
func AllowCongestion() (undo func() error, err error) {
	lock, err := os.OpenFile(allowedLock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("allow %s: %w", Congestion, err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	// Shared by all; alone for as long as the list is looked at, so that none
	// takes another's list for the machine's.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		if err := extendAllowed(lock); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", allowedLock, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH); err != nil {
		return nil, fmt.Errorf("lock %s: %w", allowedLock, err)
	}
	return func() error {
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil // the last one does it
		}
		return restoreAllowed(lock)
	}, nil
}

func extendAllowed(lock *os.File) error {
	b, err := os.ReadFile(allowedControls)
	if err != nil {
		return fmt.Errorf("allow %s: %w", Congestion, err)
	}
	if slices.Contains(strings.Fields(string(b)), Congestion) {
		return nil
	}
	if _, err := lock.WriteAt(b, 0); err != nil {
		return fmt.Errorf("note the machine's list: %w", err)
	}
	longer := append(bytes.TrimSpace(b), " "+Congestion...)
	if err := os.WriteFile(allowedControls, longer, 0); err != nil {
		return fmt.Errorf("allow %s: %w", Congestion, err)
	}
	return nil
}

func restoreAllowed(lock *os.File) error {
	if _, err := lock.Seek(0, io.SeekStart); err != nil {
		return err
	}
	before, err := io.ReadAll(lock)
	if err != nil || len(before) == 0 {
		return err
	}
	if err := os.WriteFile(allowedControls, before, 0); err != nil {
		return fmt.Errorf("restore the machine's list: %w", err)
	}
	return lock.Truncate(0)
}
