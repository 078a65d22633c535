package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// listenPatience is for a ztunnel that was just started for another reason.
const listenPatience = 10 * time.Second

// loseListeners shuts down every listener that ztunnel of Node has in a pod.
func loseListeners(ctx context.Context, l *Lab) error {
	return testbed.Eventually(ctx, listenPatience, func(context.Context) error {
		all, err := l.Bed.Machine(Node).Processes(ztunnel)
		if err != nil {
			return err
		}
		lost := 0
		for _, p := range all {
			n, err := shutListeners(p.PID)
			if err != nil {
				return fmt.Errorf("shut the listeners of ztunnel: %w", err)
			}
			lost += n
		}
		if lost == 0 {
			return fmt.Errorf("no listeners in processes of ztunnel on %s: %v", Node, all)
		}
		return nil
	})
}

func shutListeners(pid int) (lost int, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(process)
	var own unix.Stat_t
	if err := unix.Stat(filepath.Join("/proc", strconv.Itoa(pid), "ns/net"), &own); err != nil {
		return 0, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	files, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		number, err := strconv.Atoi(file.Name())
		if err != nil {
			continue
		}
		// One that was closed since, or is no socket, is not a listener.
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue
		}
		listens, err := isPodListener(fd, own.Ino)
		if err == nil && listens {
			err = unix.Shutdown(fd, unix.SHUT_RDWR)
			lost++
		}
		unix.Close(fd)
		if err != nil {
			return lost, err
		}
	}
	return lost, nil
}

// isPodListener says whether a socket listens elsewhere than in the network
// namespace of its process. Its port says nothing: where 15008 is taken, as by a
// ztunnel that is just ending, ztunnel listens at another one.
func isPodListener(fd int, own uint64) (bool, error) {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens == 0 {
		return false, nil // a file, or another kind of socket
	}
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain == unix.AF_UNIX {
		return false, err
	}
	namespace, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return false, fmt.Errorf("network namespace of a listener: %w", err)
	}
	defer unix.Close(namespace)
	var stat unix.Stat_t
	if err := unix.Fstat(namespace, &stat); err != nil {
		return false, fmt.Errorf("network namespace of a listener: %w", err)
	}
	return stat.Ino != own, nil
}
