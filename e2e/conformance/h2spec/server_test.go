// Package h2spec runs the h2spec suite of HTTP/2 conformance cases against the
// tunnel of package hbone.
//
//	server_test.go    the tunnel's server, as ztunnel runs it: TCP, Wire, TLS, Serve
//	connect_test.go   the suite's requests made CONNECT
//	spec_test.go      every case for servers, each on a connection of its own
//	client_test.go    every case for clients
//	expected_test.go  those that cannot pass, each with why
//
// The suite sends GET and POST, the server serves CONNECT: most cases need only
// some answer, and 400 is one. Those that need a stream that stays open run again
// as CONNECT. The suite was written for RFC 7540; where RFC 9113 changed the rules,
// the latter counts here.
//
// It is a module of its own so that nobody who builds the mesh needs the suite.
package h2spec

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// serve runs tunnels on loopback until the test ends.
func serve(t *testing.T, connect bool) (host string, port int) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	config := tlsConfig(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		cancel()
		running.Wait()
	})
	running.Go(func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			running.Go(func() { serveConn(ctx, conn, config, connect) })
		}
	})
	addr := l.Addr().(*net.TCPAddr)
	return addr.IP.String(), addr.Port
}

func serveConn(ctx context.Context, raw *net.TCPConn, config *tls.Config, connect bool) {
	wire, err := hbone.NewWire(raw)
	if err != nil {
		raw.Close()
		return
	}
	conn := tls.Server(wire, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return
	}
	var tunnel net.Conn = conn
	if connect {
		tunnel = newAsConnect(conn)
	}
	hbone.Serve(ctx, tunnel, hbone.Options{DrainTimeout: -1}, greet)
}

// greet speaks first, then reads to the end, and ends as well.
func greet(_ context.Context, in *hbone.Incoming) {
	st, err := in.Accept()
	if err != nil {
		return
	}
	if _, err := io.WriteString(st, "greeting"); err != nil {
		return
	}
	if _, err := io.Copy(io.Discard, st); err == nil {
		st.CloseWrite()
	}
}

func tlsConfig(t *testing.T) *tls.Config {
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
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"h2"},
		MinVersion:   tls.VersionTLS13,
	}
}
