package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// TestPeerIsAnHTTP2Server connects our client to a plain net/http server that
// knows CONNECT and nothing of us.
func TestPeerIsAnHTTP2Server(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != target.String() || r.Header.Get("Baggage") != "a=b" {
			http.Error(w, fmt.Sprintf("%s %s %v", r.Method, r.Host, r.Header), http.StatusBadRequest)
			return
		}
		if r.Header.Get("Refuse") != "" {
			w.Header().Set(hbone.HeaderReason, "on request")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		flush := http.NewResponseController(w).Flush
		flush()
		b := make([]byte, 32<<10)
		for {
			n, err := r.Body.Read(b)
			w.Write(b[:n])
			flush()
			if err != nil {
				if err != io.EOF {
					ended <- err
				}
				return
			}
		}
	})}
	if err := http2.ConfigureServer(server, &http2.Server{}); err != nil {
		t.Fatal(err)
	}
	go server.Serve(tls.NewListener(l, tlsConfig(t)))
	defer server.Close()

	conn, err := tls.Dial("tcp", l.Addr().String(), tlsConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	client, err := hbone.NewClient(conn, hbone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	baggage := http.Header{"Baggage": {"a=b"}}

	t.Run("echo", func(t *testing.T) {
		var all counter
		for range 10 {
			all.run(func() error {
				st, err := client.Open(t.Context(), hbone.Request{Authority: target, Header: baggage})
				if err != nil {
					return err
				}
				defer st.Close()
				const size = 8 << 20 // twice every window
				go func() { st.Write(make([]byte, size)); st.CloseWrite() }()
				if n, err := io.Copy(io.Discard, st); n != size || err != nil {
					return fmt.Errorf("echo: %d bytes, %w", n, err)
				}
				return nil
			})
		}
		if err := all.wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("refusal", func(t *testing.T) {
		_, err := client.Open(t.Context(), hbone.Request{Authority: target, Header: http.Header{"Baggage": {"a=b"}, "Refuse": {"1"}}})
		status := (*hbone.StatusError)(nil)
		if !errors.As(err, &status) || status.Code != 503 || status.Reason != "on request" {
			t.Error(err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		st, err := client.Open(t.Context(), hbone.Request{Authority: target, Header: baggage})
		if err != nil {
			t.Fatal(err)
		}
		st.Reset()
		if err := <-ended; err == nil {
			t.Error("the server read EOF")
		}
	})
	t.Run("drain", func(t *testing.T) {
		st, err := client.Open(t.Context(), hbone.Request{Authority: target, Header: baggage})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		down := make(chan error, 1)
		go func() { down <- server.Shutdown(t.Context()) }()
		within(t, 5*time.Second, "GOAWAY", func() {
			for client.CanOpen() {
				time.Sleep(time.Millisecond)
			}
		})
		io.WriteString(st, "still open")
		st.CloseWrite()
		if b, err := io.ReadAll(st); string(b) != "still open" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		within(t, 5*time.Second, "end", func() { <-client.Done(); <-down })
		if client.Err() != nil {
			t.Error(client.Err())
		}
	})
}

// TestPeerIsAnHTTP2Client lets the http2.Transport of golang.org/x/net connect
// to our server.
func TestPeerIsAnHTTP2Client(t *testing.T) {
	resets := make(chan error, 1)
	c, s := tlsPair(t)
	ctx, drain := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- hbone.Serve(ctx, s, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
			switch in.Authority {
			case "refuse.example:80":
				in.Refuse(401, "not you")
			case "speaks-first.example:80":
				st, _ := in.Accept()
				io.WriteString(st, "greeting")
				st.CloseWrite()
				io.Copy(io.Discard, st)
			case "resets.example:80":
				st, _ := in.Accept()
				_, err := io.ReadAll(st)
				resets <- err
			default:
				accepted(t, echo)(nil, in)
			}
		})
	}()
	peer, err := (&http2.Transport{}).NewClientConn(c)
	if err != nil {
		t.Fatal(err)
	}
	connect := func(authority string) (*http.Response, *io.PipeWriter) {
		r, w := io.Pipe()
		resp, err := peer.RoundTrip(&http.Request{
			Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority,
			Header: http.Header{"Baggage": {"a=b"}}, Body: r, ContentLength: -1,
		})
		if err != nil {
			t.Fatal(err)
		}
		return resp, w
	}

	t.Run("echo", func(t *testing.T) {
		resp, w := connect("192.0.2.1:80")
		const size = 8 << 20
		go func() { w.Write(make([]byte, size)); w.Close() }()
		if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil || resp.StatusCode != 200 {
			t.Errorf("%s: %d bytes, %v", resp.Status, n, err)
		}
	})
	t.Run("refusal", func(t *testing.T) {
		resp, _ := connect("refuse.example:80")
		resp.Body.Close()
		if resp.StatusCode != 401 || resp.Header.Get(hbone.HeaderReason) != "not you" {
			t.Errorf("%s, %v", resp.Status, resp.Header)
		}
	})
	t.Run("server speaks first and closes its half first", func(t *testing.T) {
		resp, w := connect("speaks-first.example:80")
		if b, err := io.ReadAll(resp.Body); string(b) != "greeting" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := w.Write(make([]byte, 8<<20)); err != nil {
			t.Errorf("write after the server's EOF: %v", err)
		}
		w.Close()
	})
	t.Run("reset", func(t *testing.T) {
		resp, _ := connect("resets.example:80")
		resp.Body.Close() // as a client that gives up
		if err := <-resets; !errors.Is(err, hbone.ErrReset) {
			t.Error(err)
		}
	})
	t.Run("not CONNECT", func(t *testing.T) {
		resp, err := peer.RoundTrip(&http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: "192.0.2.1:80", Path: "/"}, Header: http.Header{}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Error(resp.Status)
		}
	})
	t.Run("drain", func(t *testing.T) {
		resp, w := connect("192.0.2.1:80")
		drain()
		within(t, 5*time.Second, "GOAWAY", func() {
			for peer.CanTakeNewRequest() {
				time.Sleep(time.Millisecond)
			}
		})
		go func() { io.WriteString(w, "still open"); w.Close() }()
		if b, err := io.ReadAll(resp.Body); string(b) != "still open" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
