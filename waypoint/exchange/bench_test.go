package exchange_test

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/hbone"
)

// BenchmarkHTTP1 is a small request at a time on each of many connections: through a
// tunnel, the waypoint and another tunnel, all in this process.
func BenchmarkHTTP1(b *testing.B) {
	r := start(b, api.AppProtocol_HTTP11)
	response := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world")
	r.endpoint.Serve(r.endpoint.ID, func(c net.Conn) {
		buffer := make([]byte, 4096)
		for {
			n, err := c.Read(buffer)
			if err != nil {
				return
			}
			if bytes.HasSuffix(buffer[:n], []byte("\r\n\r\n")) {
				c.Write(response)
			}
		}
	})
	request := []byte("GET /path?query=1 HTTP/1.1\r\nHost: cart.shop\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	b.SetParallelism(16)
	b.ReportAllocs()
	var failed atomic.Bool
	b.RunParallel(func(pb *testing.PB) {
		c, err := r.client.Open(vip)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.(hbone.Stream).Reset()
		got := make([]byte, 4096)
		for pb.Next() {
			if _, err := c.Write(request); err != nil {
				failed.Store(true)
				return
			}
			for at := 0; !bytes.HasSuffix(got[:at], []byte("hello world")); {
				n, err := c.Read(got[at:])
				if err != nil {
					failed.Store(err != io.EOF || at == 0)
					return
				}
				at += n
			}
		}
	})
	if failed.Load() {
		b.Error("a connection failed")
	}
}
