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
func ListenOutside(port int) (listener net.Listener, err error) {
	failed := outside(func() { listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", Outside, port)) })
	if failed != nil {
		return nil, failed
	}
	return listener, err
}

// ListenPacketOutside receives at an UDP port of Outside.
func ListenPacketOutside(port int) (conn net.PacketConn, err error) {
	failed := outside(func() { conn, err = net.ListenPacket("udp", fmt.Sprintf("%s:%d", Outside, port)) })
	if failed != nil {
		return nil, failed
	}
	return conn, err
}

// outside runs something where Outside is.
func outside(run func()) error {
	done := make(chan error)
	go func() {
		// The thread stays in that namespace, so it is not given back: a
		// goroutine that ends locked takes its thread along.
		runtime.LockOSThread()
		namespace, err := os.Open(wireNamespace())
		if err != nil {
			done <- err
			return
		}
		defer namespace.Close()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", wireNamespace(), err)
			return
		}
		run()
		done <- nil
	}()
	return <-done
}
