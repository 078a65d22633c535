// Package proxytest is a mesh of pods in one network namespace, for tests of the
// data path: real sockets, tunnels, certificates and routing; only the kernel's
// redirection is imitated.
//
//	proxytest.go  the namespace that the tests run in
//	mesh.go       the mesh: certificates, configuration, the access log
//	pod.go        a pod: its addresses, its application, its proxy
//	capture.go    what redirect would do for it
//
// A pod's addresses are on the loopback interface. Its outbound listener owns a
// port on every address: whatever the pod connects to on that port is captured,
// and the connection's own address is the original destination, as after
// redirection. Where a captured port has to be passed on as it is, the
// application's port is put in its place.
package proxytest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

const inNamespace = "AMBIT_TEST_NAMESPACE"

// Main runs a package's tests in a new network namespace, so that they may use
// whatever addresses they like. It needs root.
func Main(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(enter())
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up the loopback interface:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
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

// addAddress gives the loopback interface an address for the time of a test.
func addAddress(t testing.TB, ip string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	bits := 32
	if net.ParseIP(ip).To4() == nil {
		bits = 128
	}
	addr := &netlink.Addr{
		IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(bits, bits)},
		Flags: syscall.IFA_F_NODAD,
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatalf("add address %s: %v", ip, err)
	}
	t.Cleanup(func() { netlink.AddrDel(lo, addr) })
	awaitLocal(t, addr.IP)
}

// awaitLocal waits until the kernel takes the address for its own: with IPv6
// that comes some time after it was added.
func awaitLocal(t testing.TB, ip net.IP) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(ip)
		if err == nil && len(routes) > 0 && routes[0].Type == syscall.RTN_LOCAL {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not become local: %v %v", ip, routes, err)
		}
	}
}
