package conformance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// nghttpxServer is nghttpx as forward proxy over HTTP/2, with an HTTP/1.1 proxy
// behind it that runs apps.
func nghttpxServer(t *testing.T, p *pki, apps *apps) (*program, string) {
	t.Helper()
	backend := connectProxy(t, apps)
	addr := freeAddr(t)
	return start(t, addr.String(), "nghttpx", "--conf=/dev/null", "--no-ocsp", "--workers=1", "--http2-proxy",
		fmt.Sprintf("--frontend=127.0.0.1,%d", addr.Port), fmt.Sprintf("--backend=127.0.0.1,%d", backend.Port),
		"--backend-connections-per-host=100", "--verify-client", "--verify-client-cacert="+p.ca, p.key, p.cert), addr.String()
}

// connectProxy is an HTTP/1.1 proxy that serves CONNECT.
func connectProxy(t *testing.T, apps *apps) *net.TCPAddr {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			running.Go(func() {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				proxyConn(c, apps)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		running.Wait()
	})
	return l.Addr().(*net.TCPAddr)
}

func proxyConn(c *net.TCPConn, apps *apps) {
	defer c.Close()
	r := bufio.NewReader(c)
	request, err := http.ReadRequest(r)
	if err != nil || request.Method != http.MethodConnect {
		return
	}
	_, digits, _ := net.SplitHostPort(request.Host)
	port, _ := strconv.Atoi(digits)
	if port == refusedPort {
		io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\n"+hbone.HeaderReason+": refused\r\ncontent-length: 0\r\n\r\n")
		return
	}
	io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	apps.run(port, buffered{c, r}, func() { abort(c) })
}

// buffered is a TCP connection some of which is in a reader.
type buffered struct {
	*net.TCPConn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// WriteTo keeps io.Copy from passing the reader by.
func (b buffered) WriteTo(w io.Writer) (int64, error) { return b.r.WriteTo(w) }

// TestNghttpxIsTheServer: nghttpx has no half-close of HTTP/1.1 behind it, and makes
// of its application's reset an end in order, so that neither is asked of it.
func TestNghttpxIsTheServer(t *testing.T) {
	p, apps := newPKI(t), newApps()
	nghttpx, addr := nghttpxServer(t, p, apps)
	client := dial(t, p, addr)
	open := func(t *testing.T, port int) hbone.Stream {
		t.Helper()
		st, err := client.Open(t.Context(), hbone.Request{Authority: target(port)})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}

	t.Run("8 MiB both ways on eight streams", func(t *testing.T) {
		together(t, 8, func(i int) error {
			st, err := client.Open(t.Context(), hbone.Request{Authority: target(echoPort)})
			if err != nil {
				return err
			}
			return returns(st, byte(i), bulk)
		})
	})
	t.Run("refusal", func(t *testing.T) {
		_, err := client.Open(t.Context(), hbone.Request{Authority: target(refusedPort)})
		if status := (*hbone.StatusError)(nil); !errors.As(err, &status) || status.Code != 503 || status.Reason != "refused" {
			t.Error(err)
		}
	})
	t.Run("the server speaks first and ends", func(t *testing.T) {
		st := open(t, greetPort)
		if b, err := io.ReadAll(st); err != nil || string(b) != greeting {
			t.Errorf("%q, %v", b, err)
		}
		st.Close()
		within(t, "the end of the application's connection", apps.read)
	})
	t.Run("reset by us", func(t *testing.T) {
		st := open(t, holdPort)
		io.WriteString(st, "half a mess")
		st.Reset()
		if got := within(t, "the end of the application's connection", apps.held); got.n > int64(len("half a mess")) {
			t.Errorf("%+v", got)
		}
		if err := returns(open(t, echoPort), 1, 1<<10); err != nil {
			t.Errorf("the next stream: %v", err)
		}
	})
	t.Run("given up while it is used", func(t *testing.T) {
		together(t, 20, func(int) error {
			st, err := client.Open(t.Context(), hbone.Request{Authority: target(echoPort)})
			if err != nil {
				return err
			}
			go io.Copy(io.Discard, st)
			st.Write(make([]byte, 1<<20))
			return st.Close()
		})
		if err := returns(open(t, echoPort), 1, bulk); err != nil {
			t.Errorf("the next stream: %v", err)
		}
	})
	t.Run("drain", func(t *testing.T) {
		st := open(t, echoPort)
		if err := nghttpx.Signal(syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		eventually(t, "GOAWAY", func() bool { return !client.CanOpen() })
		if err := returns(st, 1, 1<<20); err != nil {
			t.Errorf("a stream that was open: %v", err)
		}
		within(t, "the tunnel's end", client.Done())
		if err := client.Err(); err != nil {
			t.Error(err)
		}
	})
}

// nghttpxClient is nghttpx that carries the CONNECTs of HTTP/1.1 clients through a
// tunnel.
func nghttpxClient(t *testing.T, p *pki, server *net.TCPAddr) string {
	t.Helper()
	addr := freeAddr(t)
	start(t, addr.String(), "nghttpx", "--conf=/dev/null", "--no-ocsp", "--workers=1", "--http2-proxy",
		fmt.Sprintf("--frontend=127.0.0.1,%d;no-tls", addr.Port), fmt.Sprintf("--backend=127.0.0.1,%d;;proto=h2;tls;sni=localhost", server.Port),
		"--cacert="+p.ca, "--client-private-key-file="+p.key, "--client-cert-file="+p.cert)
	return addr.String()
}

// connect asks a proxy for a connection, and returns it with the answer.
func connect(proxy string, port int) (buffered, *http.Response, error) {
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		return buffered{}, nil, err
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	request := &http.Request{Method: http.MethodConnect, Host: target(port).String(), URL: &url.URL{Opaque: target(port).String()}, Header: http.Header{}}
	if err := request.Write(c); err != nil {
		return buffered{}, nil, err
	}
	r := bufio.NewReader(c)
	response, err := http.ReadResponse(r, request)
	return buffered{c.(*net.TCPConn), r}, response, err
}

// TestNghttpxIsTheClient: to nghttpx, an HTTP/1.1 client that closes its half has
// gone, and what its server resets has ended, so that neither is asked of it.
func TestNghttpxIsTheClient(t *testing.T) {
	p, apps := newPKI(t), newApps()
	server := listen(t, p, apps)
	proxy := nghttpxClient(t, p, server.TCPAddr)
	open := func(t *testing.T, port int) buffered {
		t.Helper()
		c, response, err := connect(proxy, port)
		if err != nil || response.StatusCode != 200 {
			t.Fatal(response, err)
		}
		return c
	}

	t.Run("8 MiB both ways on eight streams", func(t *testing.T) {
		together(t, 8, func(i int) error {
			c, response, err := connect(proxy, echoPort)
			if err != nil || response.StatusCode != 200 {
				return fmt.Errorf("%v, %w", response, err)
			}
			return returns(c, byte(i), bulk)
		})
	})
	t.Run("refusal", func(t *testing.T) {
		c, response, err := connect(proxy, refusedPort)
		if err != nil || response.StatusCode != 503 || response.Header.Get(hbone.HeaderReason) != "refused" {
			t.Error(response, err)
		}
		c.Close()
	})
	t.Run("reset by us", func(t *testing.T) {
		c := open(t, resetPort)
		defer c.Close()
		io.WriteString(c, "12345")
		if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("reset by the client", func(t *testing.T) {
		c := open(t, holdPort)
		io.WriteString(c, "half a mess")
		abort(c.TCPConn)
		if got := within(t, "the end of the stream", apps.held); !errors.Is(got.err, hbone.ErrReset) {
			t.Errorf("it ends with %v, as if it were whole", got.err)
		}
	})
	t.Run("drain", func(t *testing.T) {
		for len(server.ended) > 0 {
			<-server.ended
		}
		c := open(t, echoPort)
		server.drain()
		eventually(t, "a stream in another tunnel", func() bool {
			later, response, err := connect(proxy, echoPort)
			return err == nil && response.StatusCode == 200 && returns(later, 1, 1<<20) == nil && server.tunnels.Load() > 1
		})
		if err := returns(c, 2, bulk); err != nil {
			t.Errorf("a stream that was open: %v", err)
		}
		if err := within(t, "the end of the tunnel", server.ended); err != nil {
			t.Error(err)
		}
	})
}

// TestNghttpxIsTheClientAndTheServerEnds: once the server has closed its half,
// nghttpx forgets the stream and leaves its own half open, until the tunnel ends.
func TestNghttpxIsTheClientAndTheServerEnds(t *testing.T) {
	p, apps := newPKI(t), newApps()
	server := listen(t, p, apps)
	proxy := nghttpxClient(t, p, server.TCPAddr)
	for range 3 {
		c, response, err := connect(proxy, greetPort)
		if err != nil || response.StatusCode != 200 {
			t.Fatal(response, err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != greeting {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
	}
}
