package hbone_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

func TestRequestArrivesAsSent(t *testing.T) {
	type request struct {
		authority string
		header    http.Header
	}
	got := make(chan request, 1)
	r := tunnel(t, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
		got <- request{in.Authority, in.Header}
		in.Refuse(http.StatusServiceUnavailable, "seen")
	})
	for authority, want := range map[string]string{
		"192.0.2.7:8080":          "192.0.2.7:8080",
		"[2001:db8::7]:8080":      "[2001:db8::7]:8080",
		"[::ffff:192.0.2.7]:8080": "192.0.2.7:8080",
	} {
		header := http.Header{"Baggage": {"k8s.namespace.name=shop"}, "Forwarded": {`for="192.0.2.1:4242"`}}
		_, err := r.Open(t.Context(), hbone.Request{Authority: netip.MustParseAddrPort(authority), Header: header})
		if status := (*hbone.StatusError)(nil); !errors.As(err, &status) {
			t.Fatal(err)
		}
		in := <-got
		if in.authority != want {
			t.Errorf("authority %s arrived as %s", authority, in.authority)
		}
		for name := range header {
			if in.header.Get(name) != header.Get(name) {
				t.Errorf("%s arrived as %q", name, in.header.Get(name))
			}
		}
	}
}

func TestRefusalsCarryCodeAndReason(t *testing.T) {
	for _, code := range []int{400, 401, 503} {
		r := tunnel(t, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
			if err := in.Refuse(code, "not\r\nx-injected: today"); err != nil {
				t.Error(err)
			}
			if _, err := in.Accept(); err == nil {
				t.Error("accepted after refusal")
			}
		})
		_, err := r.Open(t.Context(), hbone.Request{Authority: target})
		status := (*hbone.StatusError)(nil)
		if !errors.As(err, &status) || status.Code != code || status.Reason != "not  x-injected: today" {
			t.Errorf("refused with %d: %v", code, err)
		}
		if errors.Is(err, hbone.ErrNotProcessed) {
			t.Errorf("a refusal invites to try elsewhere: %v", err)
		}
		if n := r.Streams(); n != 0 {
			t.Errorf("%d streams after a refusal", n)
		}
	}
}

func TestRefusalNeverLooksLikeConsent(t *testing.T) {
	r := tunnel(t, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) { in.Refuse(200, "") })
	_, err := r.Open(t.Context(), hbone.Request{Authority: target})
	if status := (*hbone.StatusError)(nil); !errors.As(err, &status) || status.Code != 500 {
		t.Error(err)
	}
}

func TestClientClosesItsHalfFirst(t *testing.T) {
	r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
		all, err := io.ReadAll(st)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(st, "read %q to its end", all)
		st.CloseWrite()
	}))
	st := r.open(t)
	io.WriteString(st, "request")
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	got, err := io.ReadAll(st)
	if err != nil || string(got) != `read "request" to its end` {
		t.Errorf("%q, %v", got, err)
	}
	if n := r.Streams(); n != 0 {
		t.Errorf("%d streams after both halves closed", n)
	}
}

func TestServerSpeaksFirstAndClosesItsHalfFirst(t *testing.T) {
	rest := make(chan string, 1)
	r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
		io.WriteString(st, "greeting")
		st.CloseWrite()
		all, err := io.ReadAll(st)
		if err != nil {
			t.Error(err)
		}
		rest <- string(all)
	}))
	st := r.open(t)
	greeting, err := io.ReadAll(st)
	if err != nil || string(greeting) != "greeting" {
		t.Fatalf("%q, %v", greeting, err)
	}
	for range 100 {
		if _, err := io.WriteString(st, "after the server's EOF;"); err != nil {
			t.Fatal(err)
		}
	}
	st.CloseWrite()
	if got := <-rest; got != strings.Repeat("after the server's EOF;", 100) {
		t.Errorf("server read %d bytes", len(got))
	}
}

func TestResetIsAnErrorAndNotEOF(t *testing.T) {
	t.Run("by the client", func(t *testing.T) {
		seen := make(chan error, 2)
		r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
			_, err := io.ReadAll(st)
			seen <- err
			_, err = st.Write([]byte("x"))
			seen <- err
		}))
		st := r.open(t)
		io.WriteString(st, "half a mess")
		st.Reset()
		for range 2 {
			checkReset(t, <-seen, http2.ErrCodeConnect)
		}
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of what this side reset: %v", err)
		}
	})
	t.Run("by the server, after bytes that still arrive", func(t *testing.T) {
		r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
			io.WriteString(st, "half an answer")
			st.Reset()
		}))
		st := r.open(t)
		got, err := io.ReadAll(st)
		checkReset(t, err, http2.ErrCodeConnect)
		if string(got) != "half an answer" {
			t.Errorf("read %q before the reset", got)
		}
		_, err = st.Write([]byte("x"))
		checkReset(t, err, http2.ErrCodeConnect)
	})
	t.Run("of the other half, after this one's EOF", func(t *testing.T) {
		r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
			io.WriteString(st, "all of it")
			st.CloseWrite()
			st.Reset()
		}))
		st := r.open(t)
		time.Sleep(50 * time.Millisecond) // let the reset overtake the reader
		if got, err := io.ReadAll(st); err != nil || string(got) != "all of it" {
			t.Errorf("%q, %v", got, err)
		}
		_, err := st.Write([]byte("x"))
		checkReset(t, err, http2.ErrCodeConnect)
	})
}

func checkReset(t *testing.T, err error, code http2.ErrCode) {
	t.Helper()
	reset := (*hbone.ResetError)(nil)
	if !errors.Is(err, hbone.ErrReset) || !errors.As(err, &reset) || reset.Code != code || !reset.Remote {
		t.Errorf("got %v, want a reset by the peer with %s", err, code)
	}
	if errors.Is(err, io.EOF) {
		t.Errorf("%v passes for the end of the stream", err)
	}
}

func TestCloseWithoutCloseWriteResets(t *testing.T) {
	for name, leave := range map[string]func(hbone.Stream){
		"closed":                   func(st hbone.Stream) { st.Close() },
		"just left by its handler": func(hbone.Stream) {},
		"half closed, then closed": func(st hbone.Stream) { st.CloseWrite(); st.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			r := tunnel(t, hbone.Options{}, accepted(t, leave))
			st := r.open(t)
			defer st.Close()
			var err error
			for err == nil {
				_, err = st.Write([]byte("x"))
				time.Sleep(time.Millisecond)
			}
			checkReset(t, err, http2.ErrCodeCancel)
		})
	}
}

func TestUnansweredRequestIsReset(t *testing.T) {
	r := tunnel(t, hbone.Options{}, func(context.Context, *hbone.Incoming) {})
	_, err := r.Open(t.Context(), hbone.Request{Authority: target})
	if !errors.Is(err, hbone.ErrReset) || errors.Is(err, hbone.ErrNotProcessed) {
		t.Error(err)
	}
}

func TestGivingUpEndsTheHandlersContext(t *testing.T) {
	ended := make(chan error, 1)
	r := tunnel(t, hbone.Options{}, func(ctx context.Context, in *hbone.Incoming) {
		<-ctx.Done()
		_, err := in.Accept()
		ended <- err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Open(ctx, hbone.Request{Authority: target}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, hbone.ErrReset) {
		t.Errorf("accepting what was given up: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	release := make(chan struct{})
	r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
		b := make([]byte, 1)
		st.Read(b) // and nothing more, so that writes stall
		st.Write(b)
		<-release
	}))
	st := r.open(t)
	defer st.Close()
	defer close(release)

	st.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	st.SetReadDeadline(time.Time{})
	io.WriteString(st, "x")
	if n, err := st.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("read after the deadline was lifted: %d, %v", n, err)
	}

	big := make([]byte, 64<<20)
	st.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := st.Write(big)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n == len(big) {
		t.Errorf("write: %d, %v", n, err)
	}
	st.SetDeadline(time.Now().Add(-time.Second))
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after a deadline in the past: %v", err)
	}
	if _, err := st.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write after a deadline in the past: %v", err)
	}
}

// TestParallelStreams moves bytes of their own through 100 streams at once, in
// both directions, with every pattern of sizes, and compares checksums.
func TestParallelStreams(t *testing.T) {
	r := tunnel(t, hbone.Options{}, accepted(t, echo))
	var all counter
	for i := range 100 {
		all.run(func() error {
			st, err := r.Open(t.Context(), hbone.Request{Authority: target})
			if err != nil {
				return err
			}
			defer st.Close()
			random := rand.NewChaCha8([32]byte{byte(i)})
			sizes := rand.New(random)
			sent, received := sha256.New(), sha256.New()
			var dir counter
			dir.run(func() error {
				for left := 256 << 10; left > 0; {
					b := make([]byte, min(left, 1+sizes.IntN(1<<(6+i%13))))
					random.Read(b)
					sent.Write(b)
					if _, err := st.Write(b); err != nil {
						return err
					}
					left -= len(b)
				}
				return st.CloseWrite()
			})
			dir.run(func() error {
				_, err := io.Copy(received, st)
				return err
			})
			if err := dir.wait(); err != nil {
				return err
			}
			if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
				return fmt.Errorf("stream %d: checksums differ", i)
			}
			return nil
		})
	}
	if err := all.wait(); err != nil {
		t.Fatal(err)
	}
	if n := r.Streams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}

// TestBackpressure: a stream that nobody reads stops its writer at about a
// window, and holds up nobody else, whatever the number of its kind.
func TestBackpressure(t *testing.T) {
	const still = 150
	release := make(chan struct{})
	r := tunnel(t, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		if in.Header.Get("Still") == "" {
			echo(st)
			return
		}
		<-release
		n, err := io.Copy(io.Discard, st)
		if err != nil || n != 1<<20 {
			t.Errorf("a stream that stood still gave %d bytes, %v", n, err)
		}
		st.CloseWrite()
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	var written atomic.Int64
	var writers counter
	for range still {
		st, err := r.Open(t.Context(), hbone.Request{Authority: target, Header: http.Header{"Still": {"yes"}}})
		if err != nil {
			t.Fatal(err)
		}
		writers.run(func() error {
			defer st.Close()
			for range 1 << 6 {
				n, err := st.Write(make([]byte, 16<<10))
				written.Add(int64(n))
				if err != nil {
					return err
				}
			}
			st.CloseWrite()
			_, err := io.Copy(io.Discard, st)
			return err
		})
	}
	settled := func() bool {
		n := written.Load()
		time.Sleep(200 * time.Millisecond)
		return n > 0 && n == written.Load()
	}
	for !settled() {
	}
	if n := written.Load(); n < still*256<<10 || n > still*(256<<10+16<<10)+2<<20 {
		t.Errorf("wrote %.1f MiB to %d streams that nobody reads; their windows are 256 KiB each", float64(n)/(1<<20), still)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 80<<20 {
		t.Errorf("heap grew by %d MiB", grown>>20)
	}

	within(t, 5*time.Second, "another stream's echo", func() {
		st := r.open(t)
		defer st.Close()
		go func() { st.Write(make([]byte, 8<<20)); st.CloseWrite() }()
		if n, err := io.Copy(io.Discard, st); n != 8<<20 || err != nil {
			t.Errorf("echo beside streams that stand still: %d bytes, %v", n, err)
		}
	})
	close(release)
	if err := writers.wait(); err != nil {
		t.Error(err)
	}
}

// TestOverPipe runs both ends over net.Pipe, where nothing is buffered: if a
// reader waited for a write, the two ends would wait for each other.
func TestOverPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := net.Pipe()
		r := tunnelOver(t, c, s, hbone.Options{}, accepted(t, echo))
		var all counter
		for range 20 {
			all.run(func() error {
				st, err := r.Open(t.Context(), hbone.Request{Authority: target})
				if err != nil {
					return err
				}
				defer st.Close()
				go func() { st.Write(make([]byte, 1<<20)); st.CloseWrite() }()
				n, err := io.Copy(io.Discard, st)
				if n != 1<<20 || err != nil {
					return fmt.Errorf("echo: %d bytes, %v", n, err)
				}
				return nil
			})
		}
		if err := all.wait(); err != nil {
			t.Error(err)
		}
		r.Close()
	})
}
