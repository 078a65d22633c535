package testbed

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Outside is an address that is not of the cluster: it belongs to the network
// between the nodes, and pods have a route to it.
const Outside = "203.0.113.1"

// ListenOutside listens on a TCP port of Outside.
func ListenOutside(port int) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	done := make(chan result)
	go func() {
		// The thread stays in that namespace, so it is not given back: a
		// goroutine that ends locked takes its thread along.
		runtime.LockOSThread()
		namespace, err := os.Open(wireNamespace())
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer namespace.Close()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("enter %s: %w", wireNamespace(), err)}
			return
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", Outside, port))
		done <- result{listener, err}
	}()
	r := <-done
	return r.listener, r.err
}
