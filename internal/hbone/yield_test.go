package hbone_test

import (
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// countedWrites is a TCP connection, whose writes are counted.
type countedWrites struct {
	net.Conn
	n atomic.Int64
}

func (c *countedWrites) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

// Streams that have a little to write at the same moment do it together.
func TestWhoWritesALittleWaitsForTheOthers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that it is one moment
	const streams = 20
	c, s := tcpPair(t)
	counted := &countedWrites{Conn: c}
	cfg := tlsConfig(t)
	client, server := tlsClientServer(counted, s, cfg)
	var got sync.WaitGroup
	got.Add(streams)
	r := tunnelOver(t, client, server, hbone.Options{}, accepted(t, func(st hbone.Stream) {
		if _, err := io.ReadFull(st, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		got.Done()
		io.Copy(io.Discard, st)
		st.Close()
	}))
	begin := make(chan struct{})
	var writers counter
	for range streams {
		st := r.open(t)
		t.Cleanup(func() { st.Close() })
		writers.run(func() error {
			<-begin
			_, err := st.Write([]byte("hello"))
			return err
		})
	}
	time.Sleep(50 * time.Millisecond) // until all wait, and nothing is under way
	before := counted.n.Load()
	close(begin)
	if err := writers.wait(); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "everything arrives", got.Wait)
	if n := counted.n.Load() - before; n > streams/4 {
		t.Errorf("%d writes for %d streams", n, streams)
	}
}
