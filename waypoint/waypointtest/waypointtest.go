// Package waypointtest is a waypoint between clients and endpoints in one network
// namespace, for tests of its data path: real sockets, tunnels, certificates and
// configuration.
//
//	waypointtest.go  the namespace that the tests run in
//	mesh.go          the mesh: what all share, and the waypoint
//	pod.go           clients and endpoints, which speak HBONE themselves
package waypointtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

const inNamespace = "AMBIT_TEST_NAMESPACE"

// Main runs a package's tests in a new network namespace, where all addresses of
// 10.9.0.0/16 are its own. It needs root.
func Main(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(enter())
	}
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "set up the loopback interface:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func setUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("10.9.0.1/16")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.AddrReplace(lo, addr)) // a worker of a fuzzer finds it there
}

// enter runs this program again in a namespace, and returns its exit status.
func enter() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "run in a network namespace:", err)
	return 1
}
