package hbone_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

func TestDrainLetsStreamsFinish(t *testing.T) {
	r := tunnel(t, hbone.Options{DrainTimeout: 10 * time.Second}, accepted(t, echo))
	st := r.open(t)
	r.drain()
	within(t, 5*time.Second, "the client's learning of the drain", func() {
		for r.CanOpen() {
			time.Sleep(time.Millisecond)
		}
	})
	if _, err := r.Open(t.Context(), hbone.Request{Authority: target}); !errors.Is(err, hbone.ErrNotProcessed) {
		t.Errorf("open while draining: %v", err)
	}
	// What is open goes on as if nothing was.
	go func() { st.Write(make([]byte, 1<<20)); st.CloseWrite() }()
	if n, err := io.Copy(io.Discard, st); n != 1<<20 || err != nil {
		t.Errorf("echo while draining: %d bytes, %v", n, err)
	}
	within(t, 5*time.Second, "end of the drained tunnel", func() { <-r.served; <-r.Done() })
	if r.serveErr != nil || r.Err() != nil {
		t.Errorf("drained in order: server %v, client %v", r.serveErr, r.Err())
	}
}

func TestDrainDeadlineCuts(t *testing.T) {
	handler := make(chan error, 1)
	r := tunnel(t, hbone.Options{DrainTimeout: 100 * time.Millisecond}, func(ctx context.Context, in *hbone.Incoming) {
		st, _ := in.Accept()
		_, err := st.Read(make([]byte, 1))
		<-ctx.Done()
		handler <- err
	})
	st := r.open(t)
	r.drain()
	_, err := st.Read(make([]byte, 1))
	if !errors.Is(err, hbone.ErrTunnelClosed) || errors.Is(err, io.EOF) {
		t.Errorf("client's read: %v", err)
	}
	if err := <-handler; !errors.Is(err, hbone.ErrTunnelClosed) {
		t.Errorf("server's read: %v", err)
	}
	<-r.served
	if !errors.Is(r.serveErr, hbone.ErrTunnelClosed) {
		t.Errorf("Serve: %v", r.serveErr)
	}
}

// TestDrainRacesOpen opens streams while the server drains: each is either
// served to its end or reported as not processed. None is lost.
func TestDrainRacesOpen(t *testing.T) {
	for range 20 {
		r := tunnel(t, hbone.Options{}, accepted(t, echo))
		var all counter
		for range 50 {
			all.run(func() error {
				st, err := r.Open(t.Context(), hbone.Request{Authority: target})
				if errors.Is(err, hbone.ErrNotProcessed) {
					return nil
				}
				if err != nil {
					return err
				}
				defer st.Close()
				io.WriteString(st, "hello")
				st.CloseWrite()
				b, err := io.ReadAll(st)
				if string(b) != "hello" {
					return errors.Join(err, errors.New("echo differs"))
				}
				return err
			})
		}
		r.drain()
		if err := all.wait(); err != nil {
			t.Fatal(err)
		}
		<-r.served
	}
}

func TestClientShutdown(t *testing.T) {
	r := tunnel(t, hbone.Options{}, accepted(t, echo))
	st := r.open(t)
	ended := make(chan error, 1)
	go func() { ended <- r.Shutdown(t.Context()) }()
	for r.CanOpen() {
		time.Sleep(time.Millisecond)
	}
	io.WriteString(st, "bye")
	st.CloseWrite()
	if b, err := io.ReadAll(st); string(b) != "bye" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-r.served
	if r.serveErr != nil {
		t.Error(r.serveErr)
	}
}

func TestClientShutdownDeadlineCuts(t *testing.T) {
	r := tunnel(t, hbone.Options{}, accepted(t, echo))
	st := r.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, hbone.ErrTunnelClosed) {
		t.Error(err)
	}
}

// TestCutConnectionIsNotEOF: a peer's death in the middle of a stream must not
// read as the stream's end.
func TestCutConnectionIsNotEOF(t *testing.T) {
	c, s := tlsPair(t)
	r := tunnelOver(t, c, s, hbone.Options{}, accepted(t, func(st hbone.Stream) {
		io.WriteString(st, "half an ans")
		st.Read(make([]byte, 1))
	}))
	st := r.open(t)
	b := make([]byte, 11)
	if _, err := io.ReadFull(st, b); err != nil {
		t.Fatal(err)
	}
	s.NetConn().Close()
	_, err := st.Read(b)
	if !errors.Is(err, hbone.ErrTunnelClosed) || errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	if _, err := st.Write(b); !errors.Is(err, hbone.ErrTunnelClosed) {
		t.Errorf("write: %v", err)
	}
	<-r.Done()
	if !errors.Is(r.Err(), hbone.ErrTunnelClosed) {
		t.Errorf("client: %v", r.Err())
	}
	if _, err := r.Open(t.Context(), hbone.Request{Authority: target}); !errors.Is(err, hbone.ErrNotProcessed) {
		t.Errorf("open: %v", err)
	}
}

// TestSilentPeer: asked after 2 s of silence, dead 5 s later.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := net.Pipe()
		go io.Copy(io.Discard, s) // reads, and says nothing
		start := time.Now()
		client, err := hbone.NewClient(c, hbone.Options{})
		if err != nil {
			t.Fatal(err)
		}
		opened := make(chan error)
		go func() {
			_, err := client.Open(t.Context(), hbone.Request{Authority: target})
			opened <- err
		}()
		if err := <-opened; !errors.Is(err, hbone.ErrPeerSilent) {
			t.Errorf("open: %v", err)
		}
		<-client.Done()
		if took := time.Since(start); took != 7*time.Second {
			t.Errorf("took %s", took)
		}
		if !errors.Is(client.Err(), hbone.ErrPeerSilent) {
			t.Error(client.Err())
		}
		s.Close()
	})
}

func TestIdlePeersKeepEachOtherAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := net.Pipe()
		r := tunnelOver(t, c, s, hbone.Options{}, accepted(t, echo))
		st := r.open(t)
		time.Sleep(time.Hour)
		io.WriteString(st, "still here")
		st.CloseWrite()
		if b, err := io.ReadAll(st); string(b) != "still here" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		r.Close()
	})
}

// TestServerWaitsForNoPreface: who connects and stays silent is cut after 5 s.
func TestServerWaitsForNoPreface(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := net.Pipe()
		defer c.Close()
		go io.Copy(io.Discard, c)
		start := time.Now()
		err := hbone.Serve(t.Context(), s, hbone.Options{}, nil)
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %s", took)
		}
		if hbone.FaultOf(err) != hbone.SlowPreface {
			t.Errorf("ended with %v", err)
		}
	})
}

// TestServerWaitsForNoHalfFrame: one that comes byte by byte is no sign of life.
func TestServerWaitsForNoHalfFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := net.Pipe()
		defer c.Close()
		go io.Copy(io.Discard, c)
		go func() {
			io.WriteString(c, http2.ClientPreface)
			http2.NewFramer(c, nil).WriteSettings()
			io.WriteString(c, "\x00\xff\xff\x00\x00\x00\x00\x00\x01") // a long DATA frame
			for {
				if _, err := c.Write([]byte{0}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		start := time.Now()
		err := hbone.Serve(t.Context(), s, hbone.Options{}, nil)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("held open for %s", took)
		}
		if hbone.FaultOf(err) == "" {
			t.Errorf("ended with %v", err)
		}
	})
}

// TestUnusedTunnelIsEnded, in order, a quarter of an hour after its last stream.
func TestUnusedTunnelIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := net.Pipe()
		r := tunnelOver(t, c, s, hbone.Options{}, accepted(t, echo))
		st := r.open(t)
		time.Sleep(time.Hour) // it is in use
		if !r.CanOpen() {
			t.Error("ended while there is a stream")
		}
		st.Close()
		synctest.Wait()
		start := time.Now()
		<-r.Done()
		if took := time.Since(start); took < 15*time.Minute || took > 16*time.Minute {
			t.Errorf("kept for %s without a stream", took)
		}
		if r.Err() != nil {
			t.Errorf("the peer sees %v", r.Err())
		}
	})
}

func TestLimitOfStreams(t *testing.T) {
	release := make(chan struct{})
	r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) { <-release; echo(st) }))
	var streams []hbone.Stream
	defer func() {
		for _, st := range streams {
			st.Close()
		}
	}()
	for r.CanOpen() {
		streams = append(streams, r.open(t))
	}
	if len(streams) != 200 {
		t.Errorf("%d streams", len(streams))
	}
	if _, err := r.Open(t.Context(), hbone.Request{Authority: target}); !errors.Is(err, hbone.ErrNotProcessed) {
		t.Errorf("one more: %v", err)
	}
	// A stream given up still occupies its handler. To the peer it is closed, and
	// another may be opened, which waits: it is not refused for what it cannot know.
	streams[0].Reset()
	if !r.CanOpen() {
		t.Error("no room after a stream was given up")
	}
	opened := make(chan error, 1)
	go func() {
		st, err := r.Open(t.Context(), hbone.Request{Authority: target})
		if err == nil {
			err = st.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Errorf("one more than the server has handlers: answered, %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	within(t, 5*time.Second, "the one that waited is served", func() {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	})
}

// A request that is given up while it waits for a handler is never served, and what
// waits is bounded: who opens and resets, over and over, gets no more than that.
func TestRequestsThatWait(t *testing.T) {
	release := make(chan struct{})
	var served atomic.Int64
	r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) { served.Add(1); <-release; echo(st) }))
	var streams []hbone.Stream
	for r.CanOpen() {
		streams = append(streams, r.open(t))
	}
	handlers := served.Load()
	for _, st := range streams {
		st.Reset()
	}
	refused := 0
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := r.Open(ctx, hbone.Request{Authority: target})
		if errors.Is(err, hbone.ErrNotProcessed) && ctx.Err() == nil {
			refused++
		}
		cancel()
		if err == nil {
			t.Fatal("served although no handler has returned")
		}
	}
	if refused == 0 {
		t.Error("three hundred requests wait, of the two hundred that may")
	}
	close(release)
	within(t, 5*time.Second, "the next one is served", func() {
		for {
			if st, err := r.Open(t.Context(), hbone.Request{Authority: target}); err == nil {
				st.Close()
				return
			}
		}
	})
	if n := served.Load(); n > handlers+10 {
		t.Errorf("%d of the requests that were given up were served", n-handlers)
	}
}

func TestOpenRefusesNonsense(t *testing.T) {
	r := tunnel(t, hbone.Options{}, accepted(t, echo))
	for name, request := range map[string]hbone.Request{
		"no address":      {},
		"no port":         {Authority: netip.MustParseAddrPort("192.0.2.1:0")},
		"a zone":          {Authority: netip.MustParseAddrPort("[fe80::1%eth0]:80")},
		"header splits":   {Authority: target, Header: http.Header{"Baggage": {"a\r\nb: c"}}},
		"header name":     {Authority: target, Header: http.Header{"b g": {"a"}}},
		"pseudo-header":   {Authority: target, Header: http.Header{":path": {"/"}}},
		"header too long": {Authority: target, Header: http.Header{"Baggage": {strings.Repeat("~", 20<<10)}}},
	} {
		if st, err := r.Open(t.Context(), request); err == nil || errors.Is(err, hbone.ErrNotProcessed) {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	// And none of it did harm.
	st := r.open(t)
	st.CloseWrite()
	if _, err := io.ReadAll(st); err != nil {
		t.Error(err)
	}
}

func TestProtocolMustBeH2(t *testing.T) {
	c, s := tcpPair(t)
	cfg := tlsConfig(t)
	cfg.NextProtos = nil
	client, server := tlsClientServer(c, s, cfg)
	if _, err := hbone.NewClient(client, hbone.Options{}); err == nil {
		t.Error("a client over a connection without ALPN h2")
	}
	if err := hbone.Serve(t.Context(), server, hbone.Options{}, nil); err == nil {
		t.Error("a server over a connection without ALPN h2")
	}
}

func TestErrorsSayWhatHappened(t *testing.T) {
	for want, err := range map[string]error{
		"peer answered 401: denied by policy":       &hbone.StatusError{Code: 401, Reason: "denied by policy"},
		"peer answered 503":                         &hbone.StatusError{Code: 503},
		"stream reset by the peer: connect_error":   &hbone.ResetError{Code: http2.ErrCodeConnect, Remote: true},
		"stream reset by this side: protocol_error": &hbone.ResetError{Code: http2.ErrCodeProtocol},
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
	}
}

// TestDrainedTunnelIsThePeersToClose: it may hold what it has not passed on yet.
func TestDrainedTunnelIsThePeersToClose(t *testing.T) {
	c, s := tlsPair(t)
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- hbone.Serve(ctx, s, hbone.Options{}, accepted(t, echo)) }()
	p := newRaw(t, c, true)
	p.WriteSettings()
	p.connect(1)
	p.expect(t, "HEADERS 200")
	drain()
	p.expect(t, "GOAWAY NO_ERROR") // no answer to the ping: the second takes a second
	p.expect(t, "GOAWAY NO_ERROR")
	p.WriteData(1, true, []byte("last"))
	p.expect(t, "DATA")
	select {
	case err := <-served:
		t.Errorf("the server was first: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	c.Close()
	within(t, time.Second, "the server's end", func() {
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	for range p.seen {
	}
}
