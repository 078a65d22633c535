package main

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// BenchmarkConnect is connect(2), one byte there and back, and close(2), from one captured pod to another. us-connect is the
// time in connect(2); us-cpu is what the process, which is client, both ztunnels and server, used of all processors.
func BenchmarkConnect(b *testing.B) {
	for _, way := range []struct{ name, node string }{{"tunnel", "b"}, {"same node", "a"}} {
		b.Run(way.name, func(b *testing.B) {
			bed := newBed(b)
			client, server := bed.network.Node("a").Pod("client"), bed.network.Node(way.node).Pod("server")
			serveEcho(b, server)
			for _, pod := range []*netnstest.Pod{client, server} {
				bed.capture(pod)
				bed.publish(pod, api.TunnelProtocol_HBONE)
			}
			err := client.Do(func() error {
				var connecting time.Duration
				if _, err := exchange(server.IPv4); err != nil { // the first makes the tunnel
					return err
				}
				before := cpuTime()
				for b.Loop() {
					connect, err := exchange(server.IPv4)
					if err != nil {
						return err
					}
					connecting += connect
				}
				b.ReportMetric(float64(connecting.Microseconds())/float64(b.N), "us-connect")
				b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "us-cpu")
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// exchange blocks its thread, so that what is measured is not the scheduler's.
func exchange(server netip.Addr) (connect time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	start := time.Now()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 8080, Addr: server.As4()}); err != nil {
		return 0, err
	}
	connect = time.Since(start)
	one := []byte{1}
	if _, err := unix.Write(fd, one); err != nil {
		return 0, err
	}
	if _, err := unix.Read(fd, one); err != nil {
		return 0, err
	}
	return connect, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func serveEcho(b *testing.B, pod *netnstest.Pod) {
	b.Helper()
	var l net.Listener
	if err := pod.Do(func() (err error) {
		l, err = net.Listen("tcp", "[::]:8080")
		return err
	}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.CopyN(c, c, 1)
				io.Copy(io.Discard, c)
			}()
		}
	}()
}
