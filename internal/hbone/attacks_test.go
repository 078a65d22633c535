package hbone_test

import (
	"context"
	"encoding/binary"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// TestBytesAfterARefusalAreNoRequest: what follows a CONNECT that was refused, be
// it another request's bytes, is thrown away, and the next request is its own.
func TestBytesAfterARefusalAreNoRequest(t *testing.T) {
	var asked atomic.Int32
	p, _ := serveRaw(t, func(_ context.Context, in *hbone.Incoming) {
		asked.Add(1)
		in.Refuse(401, "PolicyDenied")
	})
	p.WriteSettings()
	smuggled := http2.ClientPreface + "CONNECT 192.0.2.9:80 HTTP/1.1\r\nHost: 192.0.2.9:80\r\n\r\n" +
		"\x00\x00\x05\x01\x04\x00\x00\x00\x05\x82\x86\x84\x41\x00" // a HEADERS frame
	for i := range uint32(20) {
		id := 2*i + 1
		p.connect(id)
		p.WriteData(id, false, []byte(smuggled))
		p.WriteData(id, true, []byte(smuggled))
	}
	for range 20 {
		p.expect(t, "HEADERS 401")
	}
	p.request(41, ":method", "CONNECT", ":authority", "192.0.2.1:80")
	p.expect(t, "HEADERS 401")
	if n := asked.Load(); n != 21 {
		t.Errorf("%d requests were seen, 21 were made", n)
	}
}

// TestCreditIsGivenOnce: however streams end, resets from either side and padding
// included, a peer gets back no more of the tunnel's window than it used.
func TestCreditIsGivenOnce(t *testing.T) {
	c, s := tlsPair(t)
	done := make(chan error, 1)
	var n atomic.Int32
	go func() {
		done <- hbone.Serve(context.Background(), s, hbone.Options{DrainTimeout: -1}, func(_ context.Context, in *hbone.Incoming) {
			st, err := in.Accept()
			if err != nil {
				return
			}
			switch n.Add(1) % 3 {
			case 0:
				st.Reset()
			case 1:
				io.Copy(io.Discard, st)
			case 2:
				io.ReadFull(st, make([]byte, 1000))
				st.Close()
			}
		})
	}()
	f := http2.NewFramer(c, c)
	f.AllowIllegalWrites = true
	io.WriteString(c, http2.ClientPreface)
	f.WriteSettings()
	p := &raw{Framer: f, conn: c, seen: make(chan string)}
	p.enc = hpack.NewEncoder(&p.buf)
	credit, used := make(chan int64, 1), int64(0)
	go func() {
		var sum int64
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				credit <- sum
				return
			}
			if u, ok := frame.(*http2.WindowUpdateFrame); ok && u.StreamID == 0 {
				sum += int64(u.Increment)
			}
		}
	}()
	const first = 16 << 20 // what the server allows at first, beyond the 65,535 of the specification
	for i := range uint32(300) {
		id := 2*i + 1
		p.connect(id)
		for range 4 {
			f.WriteDataPadded(id, false, make([]byte, 10<<10), make([]byte, 200))
			used += 10<<10 + 201
		}
		switch i % 4 {
		case 0:
			f.WriteRSTStream(id, http2.ErrCodeCancel)
			f.WriteDataPadded(id, false, make([]byte, 100), make([]byte, 10)) // too late
			used += 111
		case 1:
			f.WriteData(id, true, nil)
		case 2:
			f.WriteRawFrame(http2.FrameWindowUpdate, 0, id, binary.BigEndian.AppendUint32(nil, 0)) // have it reset
		case 3:
			f.WriteData(id, true, make([]byte, 77))
			used += 77
		}
	}
	p.request(1001, ":method", "GET")
	time.Sleep(100 * time.Millisecond)
	c.CloseWrite()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the tunnel does not end")
	}
	c.Close()
	if sum := <-credit; sum > first+used || sum < used-8<<20 {
		t.Errorf("%d bytes used, %d given back besides the first window", used, sum-first)
	}
}

// TestTunnelsThatEndLeaveNothing: however many peers have come and gone, in order
// or cut off in the middle, what the process holds does not grow.
func TestTunnelsThatEndLeaveNothing(t *testing.T) {
	var used runtime.MemStats
	live := func() uint64 {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		runtime.ReadMemStats(&used)
		return used.HeapAlloc
	}
	comeAndGo := func(n int) {
		for i := range n {
			c, s := tcpPair(t)
			served := make(chan struct{})
			go func() {
				hbone.Serve(context.Background(), s, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
					if st, err := in.Accept(); err == nil {
						echo(st)
					}
				})
				close(served)
			}()
			client, err := hbone.NewClient(c, hbone.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				st, err := client.Open(t.Context(), hbone.Request{Authority: target})
				if err != nil {
					t.Fatal(err)
				}
				st.Write(make([]byte, 10<<10))
			}
			if i%2 == 0 {
				c.Close()
			}
			client.Close()
			<-served
		}
	}
	comeAndGo(50)
	before, goroutines := live(), runtime.NumGoroutine()
	comeAndGo(400)
	if after := live(); after > before+1<<20 {
		t.Errorf("the heap has grown from %d KiB to %d by 400 tunnels", before>>10, after>>10)
	}
	if n := runtime.NumGoroutine(); n > goroutines+10 {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
}

// TestResetsOneAfterTheOther: no more than one request is there at a time, so that
// no limit of streams is in the way; it is the resets that are too many.
func TestResetsOneAfterTheOther(t *testing.T) {
	over := make(chan struct{})
	p, ended := serveRaw(t, func(ctx context.Context, in *hbone.Incoming) {
		<-ctx.Done()
		over <- struct{}{}
	})
	p.WriteSettings()
	for i := range uint32(20_000) {
		p.connect(2*i + 1)
		p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		select {
		case <-over:
		case err := <-ended:
			if hbone.FaultOf(err) != hbone.ResetFlood {
				t.Errorf("ended with %v", err)
			}
			return
		case <-time.After(10 * time.Second):
			t.Fatal("a request that was reset goes on")
		}
	}
	t.Error("twenty thousand resets are served")
}
