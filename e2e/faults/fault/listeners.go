package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ztunnelPorts are where it listens inside pods. An application may have one
// itself, and ztunnel another then; in this lab none does.
var ztunnelPorts = map[int]bool{15001: true, 15006: true, 15008: true}

// loseListeners shuts down every listener that ztunnel of Node has in a pod.
func loseListeners(_ context.Context, l *Lab) error {
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
		return fmt.Errorf("ztunnel of %s has no listeners", Node)
	}
	return nil
}

func shutListeners(pid int) (lost int, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(process)
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
		if isPodListener(fd) {
			if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
				unix.Close(fd)
				return lost, fmt.Errorf("shut down: %w", err)
			}
			lost++
		}
		unix.Close(fd)
	}
	return lost, nil
}

func isPodListener(fd int) bool {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens == 0 {
		return false
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch address := name.(type) {
	case *unix.SockaddrInet4:
		return ztunnelPorts[address.Port]
	case *unix.SockaddrInet6:
		return ztunnelPorts[address.Port]
	}
	return false
}
