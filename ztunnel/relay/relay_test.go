package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

func TestBothHalvesCarryAndClose(t *testing.T) {
	r := start(t, socket, socket)
	r.write(r.client, "question")
	r.read(r.server, "question")
	r.write(r.server, "answer")
	r.read(r.client, "answer")
	r.client.CloseWrite()
	r.readEOF(r.server)
	r.server.CloseWrite()
	r.readEOF(r.client)
	r.ends(Closed, len("question"), len("answer"))
}

func TestServerSpeaksFirst(t *testing.T) {
	r := start(t, socket, socket)
	r.write(r.server, "220 ready")
	r.read(r.client, "220 ready")
	r.server.Close()
	r.readEOF(r.client)
	r.client.Close()
	r.ends(Closed, 0, len("220 ready"))
}

// A half that is closed says nothing about the other: the server streams on for
// many inspections after the client's last byte.
func TestServerStreamsAfterClientsFIN(t *testing.T) {
	for _, kind := range []kind{socket, stream} {
		r := start(t, kind, socket)
		r.write(r.client, "all of it")
		r.client.CloseWrite()
		r.read(r.server, "all of it")
		r.readEOF(r.server)
		for range 5 {
			time.Sleep(2 * inspectInTests)
			r.write(r.server, "tick")
			r.read(r.client, "tick")
		}
		r.server.Close()
		r.readEOF(r.client)
		r.ends(Closed, 9, 5*len("tick"))
	}
}

func TestResetIsCarriedBothWays(t *testing.T) {
	for _, kinds := range [][2]kind{{socket, socket}, {stream, socket}, {socket, stream}} {
		r := start(t, kinds[0], kinds[1])
		r.write(r.client, "x")
		r.read(r.server, "x")
		Reset(r.client)
		r.readReset(r.server)
		r.ends(ClientReset, 1, 0)

		r = start(t, kinds[0], kinds[1])
		r.write(r.server, "x")
		r.read(r.client, "x")
		Reset(r.server)
		r.readReset(r.client)
		r.ends(ServerReset, 0, 1)
	}
}

// No read or write of ours sees this reset: the client's half had ended, and the
// server is silent.
// What a peer sent before its reset arrives, also if the other side is just about to write: the kernel hands out what it has first, too.
func TestWhatCameBeforeAResetIsDelivered(t *testing.T) {
	for range 500 {
		for _, kinds := range [][2]kind{{stream, socket}, {socket, stream}} {
			r := start(t, kinds[0], kinds[1])
			resets, other, want := r.client, r.server, ClientReset
			if kinds[1] == stream {
				resets, other, want = r.server, r.client, ServerReset
			}
			written := make(chan struct{})
			go func() {
				defer close(written)
				for range 3 {
					other.Write([]byte("y")) // it may fail
				}
			}()
			r.write(resets, "last words")
			Reset(resets)
			r.read(other, "last words")
			<-written
			if res := r.result(); res.Reason != want {
				t.Fatalf("%+v, want %s", res, want)
			}
		}
	}
}

func TestResetAfterFINIsFound(t *testing.T) {
	for _, k := range []kind{socket, stream} {
		testResetAfterFIN(t, k)
	}
}

func testResetAfterFIN(t *testing.T, k kind) {
	r := start(t, k, socket)
	r.client.CloseWrite()
	r.readEOF(r.server)
	Reset(r.client)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := r.server.Write([]byte("x")); errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the silent server's connection is open: %v", err)
		}
	}
	if res := r.result(); res.Reason != ClientReset {
		t.Fatalf("ended with %+v", res)
	}
}

// The relay does not read from a client whose server stalls, and still has to
// find that the client is gone.
func TestResetIsFoundWhileTheOtherSideStalls(t *testing.T) {
	r := start(t, socket, socket)
	r.client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for {
		if _, err := r.client.Write(make([]byte, 1<<20)); err != nil {
			break // both sides' buffers are full
		}
	}
	Reset(r.client)
	if res := r.result(); res.Reason != ClientReset || res.ToServer == 0 {
		t.Fatalf("ended with %+v", res)
	}
}

// An end that is closed in order while bytes still move to the other is not gone.
func TestOrderlyEndIsNotTakenForAReset(t *testing.T) {
	r := start(t, socket, socket)
	r.server.(*net.TCPConn).SetReadBuffer(64 << 10)
	r.server.CloseWrite()
	r.readEOF(r.client)
	sent := make([]byte, 8<<20)
	rand.New(rand.NewSource(1)).Read(sent)
	go func() {
		r.client.Write(sent)
		r.client.Close()
	}()
	time.Sleep(4 * inspectInTests)
	got, err := io.ReadAll(r.server)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read %d bytes of %d: %v", len(got), len(sent), err)
	}
	r.ends(Closed, len(sent), 0)
}

// Bulk between sockets is spliced; it arrives whole, and is counted while the
// connection lives.
func TestBulkIsCountedWhileItMoves(t *testing.T) {
	r := start(t, socket, socket)
	sent := make([]byte, 32<<20)
	rand.New(rand.NewSource(1)).Read(sent)
	go r.client.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(r.server, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("bulk was damaged: %v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); r.meter.toServer.Load() != int64(len(sent)); {
		if time.Now().After(deadline) {
			t.Fatalf("counted %d bytes of %d on the open connection", r.meter.toServer.Load(), len(sent))
		}
		time.Sleep(time.Millisecond)
	}
	r.write(r.client, "interactive again")
	r.read(r.server, "interactive again")
	r.client.Close()
	r.server.Close()
	r.ends(Closed, len(sent)+len("interactive again"), 0)
}

func TestCancellingCuts(t *testing.T) {
	for _, kinds := range [][2]kind{{socket, socket}, {stream, socket}, {socket, stream}} {
		r := start(t, kinds[0], kinds[1])
		cause := errors.New("drain deadline")
		r.cut(cause)
		r.readReset(r.client)
		r.readReset(r.server)
		if res := r.result(); res.Reason != Cut || res.Err != cause {
			t.Fatalf("ended with %+v", res)
		}
	}
}

func TestNothingLeaks(t *testing.T) {
	relay := carrier(t)
	fds, routines := openFiles(t), runtime.NumGoroutine()
	for i := range 1000 {
		r := startWith(t, relay, socket, socket)
		r.write(r.client, "ping")
		r.read(r.server, "ping")
		if i%2 == 0 {
			Reset(r.client)
		}
		r.client.Close()
		r.server.Close()
		r.result()
	}
	if n := openFiles(t); n > fds+5 {
		t.Errorf("%d descriptors open, %d before", n, fds)
	}
	if n := runtime.NumGoroutine(); n > routines+5 {
		t.Errorf("%d goroutines, %d before", n, routines)
	}
}

const inspectInTests = 20 * time.Millisecond

type kind int

const (
	socket kind = iota
	stream
)

// rig is one relayed connection: the application's ends are client and server.
type rig struct {
	t              *testing.T
	client, server Conn
	meter          counter
	cut            context.CancelCauseFunc
	done           chan Result
}

func start(t *testing.T, clientKind, serverKind kind) *rig {
	t.Helper()
	return startWith(t, carrier(t), clientKind, serverKind)
}

func startWith(t *testing.T, relay *Relay, clientKind, serverKind kind) *rig {
	t.Helper()
	r := &rig{t: t, done: make(chan Result, 1)}
	var near, far Conn
	r.client, near = pair(t, clientKind)
	far, r.server = pair(t, serverKind)
	for _, c := range []Conn{r.client, r.server} {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
	}
	ctx, cut := context.WithCancelCause(t.Context())
	r.cut = cut
	go relay.Start(ctx, near, far, &r.meter, func(res Result) { r.done <- res })
	return r
}

// carrier is a Relay that inspects, and parks, all the time.
func carrier(t *testing.T) *Relay {
	t.Helper()
	relay, err := New()
	if err != nil {
		t.Fatal(err)
	}
	relay.inspectFirst, relay.inspectEvery = inspectInTests, inspectInTests
	t.Cleanup(func() {
		if err := relay.Close(); err != nil {
			t.Error(err)
		}
	})
	return relay
}

func (r *rig) write(c Conn, s string) {
	r.t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(c Conn, want string) {
	r.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		r.t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func (r *rig) readEOF(c Conn) {
	r.t.Helper()
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		r.t.Fatalf("read %d bytes, %v; want the end of the data", n, err)
	}
}

func (r *rig) readReset(c Conn) {
	r.t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, hbone.ErrReset) {
		r.t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

func (r *rig) result() Result {
	r.t.Helper()
	select {
	case res := <-r.done:
		r.cut(nil)
		r.client.Close()
		r.server.Close()
		return res
	case <-time.After(10 * time.Second):
		r.t.Fatal("the relay goes on")
		panic("unreachable")
	}
}

func (r *rig) ends(want Reason, toServer, toClient int) {
	r.t.Helper()
	res := r.result()
	if res.Reason != want || (res.Err == nil) != (want == Closed) {
		r.t.Fatalf("ended with %s: %v; want %s", res.Reason, res.Err, want)
	}
	if res.ToServer != int64(toServer) || res.ToClient != int64(toClient) {
		r.t.Fatalf("carried %d and %d bytes, want %d and %d", res.ToServer, res.ToClient, toServer, toClient)
	}
	if r.meter.toServer.Load() != res.ToServer || r.meter.toClient.Load() != res.ToClient {
		r.t.Fatalf("the meter saw %d and %d bytes", r.meter.toServer.Load(), r.meter.toClient.Load())
	}
}

type counter struct{ toServer, toClient atomic.Int64 }

func (c *counter) Moved(toServer, toClient int64) {
	c.toServer.Add(toServer)
	c.toClient.Add(toClient)
}

// pair returns the two ends of a connection; the relay's end is of the kind
// asked for, the application's resets like it.
func pair(t *testing.T, k kind) (Conn, Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	if k == stream {
		return streamPair(t, a, b)
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// streamPair returns the two ends of a stream in a tunnel over a and b.
func streamPair(t *testing.T, a, b net.Conn) (Conn, Conn) {
	t.Helper()
	accepted, served := make(chan Conn), make(chan error, 1)
	go func() {
		served <- hbone.Serve(context.Background(), b, hbone.Options{}, func(ctx context.Context, in *hbone.Incoming) {
			st, err := in.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			accepted <- st
			<-ctx.Done()
		})
	}()
	client, err := hbone.NewClient(a, hbone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); <-served })
	opened := make(chan Conn, 1)
	go func() {
		st, err := client.Open(context.Background(), hbone.Request{Authority: netip.MustParseAddrPort("192.0.2.1:80")})
		if err != nil {
			t.Error(err)
		}
		opened <- st
	}()
	far := <-accepted
	return <-opened, far
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
