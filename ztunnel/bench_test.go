package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// BenchmarkConnect is connect(2), one byte there and back, and close(2), from one captured pod to another, one after the other
// and by sixteen applications. us-connect is the time in connect(2); us-cpu is what the process, which is clients, both
// ztunnels and server, used of all processors.
func BenchmarkConnect(b *testing.B) {
	for _, way := range []struct{ name, node string }{{"tunnel", "b"}, {"same node", "a"}} {
		for _, clients := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s by %d", way.name, clients), func(b *testing.B) { benchmarkConnect(b, way.node, clients) })
		}
	}
}

func benchmarkConnect(b *testing.B, serverNode string, clients int) {
	bed := newBed(b)
	client, server := bed.network.Node("a").Pod("client"), bed.network.Node(serverNode).Pod("server")
	serveEcho(b, server)
	for _, pod := range []*netnstest.Pod{client, server} {
		bed.capture(pod)
		bed.publish(pod, api.TunnelProtocol_HBONE)
	}
	var connecting, left atomic.Int64
	run := func(exchanges int) {
		left.Store(int64(exchanges))
		var group sync.WaitGroup
		for range clients {
			group.Go(func() {
				err := client.Do(func() error {
					for left.Add(-1) >= 0 {
						took, err := connectAndEcho(server.IPv4)
						if err != nil {
							return err
						}
						connecting.Add(int64(took))
					}
					return nil
				})
				if err != nil {
					b.Error(err)
				}
			})
		}
		group.Wait()
	}
	run(clients) // makes the tunnels
	connecting.Store(0)
	before := cpuTime()
	b.ResetTimer()
	run(b.N)
	b.ReportMetric(float64(connecting.Load())/1e3/float64(b.N), "us-connect")
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "us-cpu")
}

func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// connectAndEcho blocks its thread, so that what is measured is not the scheduler's.
func connectAndEcho(server netip.Addr) (connect time.Duration, err error) {
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
