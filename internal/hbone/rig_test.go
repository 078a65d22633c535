package hbone_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var target = netip.MustParseAddrPort("192.0.2.1:80")

// tlsConfig serves both ends: who the peer is is not this package's business.
func tlsConfig(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		InsecureSkipVerify: true,
		NextProtos:         []string{"h2"},
		MinVersion:         tls.VersionTLS13,
	}
}

// tcpPair returns the two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// tlsPair returns the two ends of a TLS connection, shaken hands.
func tlsPair(t testing.TB) (client, server *tls.Conn) {
	t.Helper()
	c, s := tcpPair(t)
	cfg := tlsConfig(t)
	return tlsClientServer(c, s, cfg)
}

// rig is a tunnel with both of its ends.
type rig struct {
	*hbone.Client
	// drain ends Serve's context.
	drain context.CancelFunc
	// served is closed when Serve has returned serveErr.
	served   chan struct{}
	serveErr error
}

// tunnel connects a Client to a Serve that runs h.
func tunnel(t testing.TB, opts hbone.Options, h func(context.Context, *hbone.Incoming)) *rig {
	t.Helper()
	c, s := tlsPair(t)
	return tunnelOver(t, c, s, opts, h)
}

func tunnelOver(t testing.TB, c, s net.Conn, opts hbone.Options, h func(context.Context, *hbone.Incoming)) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{drain: cancel, served: make(chan struct{})}
	go func() {
		defer close(r.served)
		r.serveErr = hbone.Serve(ctx, s, opts, h)
	}()
	var err error
	if r.Client, err = hbone.NewClient(c, opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		<-r.served
		cancel()
	})
	return r
}

// open opens a stream, or ends the test.
func (r *rig) open(t testing.TB) hbone.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := r.Open(ctx, hbone.Request{Authority: target})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// accepted makes a handler that accepts and then does as told.
func accepted(t testing.TB, f func(st hbone.Stream)) func(context.Context, *hbone.Incoming) {
	return func(_ context.Context, in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		f(st)
	}
}

// echo sends back what it gets, then closes its half as well.
func echo(st hbone.Stream) {
	if _, err := io.Copy(st, st); err == nil {
		st.CloseWrite()
	}
	st.Close()
}

// within ends the test if f takes longer than d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: not within %s", what, d)
	}
}

// counter is a WaitGroup's worth of goroutines with their errors.
type counter struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

func (c *counter) run(f func() error) {
	c.wg.Go(func() {
		if err := f(); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.errs = append(c.errs, err)
		}
	})
}

func (c *counter) wait() error {
	c.wg.Wait()
	return errors.Join(c.errs...)
}

// tlsClientServer shakes hands over c and s.
func tlsClientServer(c, s net.Conn, cfg *tls.Config) (client, server *tls.Conn) {
	client, server = tls.Client(wired(c), cfg), tls.Server(wired(s), cfg)
	var both counter
	both.run(client.Handshake)
	both.run(server.Handshake)
	if err := both.wait(); err != nil {
		panic(err)
	}
	return client, server
}

// wired is what a tunnel's TLS stands on in production.
func wired(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	wire, err := hbone.NewWire(tcp)
	if err != nil {
		panic(err)
	}
	return wire
}
