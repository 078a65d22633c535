package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/tunnel"
	"github.com/ambit-mesh/ambit/internal/hbone"
)

const pkiVariable = "AMBIT_BENCH_PKI"

// tunnelPort is where tunnels come in.
const tunnelPort = 15008

// runBackend is all backends, on ports of their own.
func runBackend(in io.Reader, out io.Writer) error {
	dir := os.Getenv(pkiVariable)
	secure, err := serverTLS(dir)
	if err != nil {
		return err
	}
	responses := map[uint16][]byte{} // by port
	for i, name := range plan.Backends {
		response := plan.Response(name)
		port := uint16(plan.FirstPort + i)
		responses[port] = response
		if err := accept(port, func(conn *net.TCPConn) { answer(conn, response) }); err != nil {
			return err
		}
		if err := accept(uint16(plan.FirstTLSPort+i), func(conn *net.TCPConn) { answer(tls.Server(conn, secure), response) }); err != nil {
			return err
		}
	}
	store, err := pki.Keep(dir, pki.ServerID)
	if err != nil {
		return err
	}
	err = accept(tunnelPort, func(raw *net.TCPConn) {
		tunnel.Serve(store, pki.ServerID, raw, func(_ context.Context, in *hbone.Incoming) {
			to, err := netip.ParseAddrPort(in.Authority)
			response, ok := responses[to.Port()]
			if err != nil || !ok {
				in.Refuse(http.StatusServiceUnavailable, "no such backend")
				return
			}
			if stream, err := in.Accept(); err == nil {
				answer(stream, response)
			}
		})
	})
	if err != nil {
		return err
	}
	return process.Serve(in, out, func(request) (reply, error) { return reply{}, nil })
}

// serverTLS wants clients of the same authority.
func serverTLS(dir string) (*tls.Config, error) {
	files := pki.FilesOf(dir, pki.ServerName)
	own, roots, err := material(files)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
		DynamicRecordSizingDisabled: true, // as tunnels have it
	}, nil
}

func material(files pki.Files) (own tls.Certificate, roots *x509.CertPool, err error) {
	if own, err = tls.LoadX509KeyPair(files.Certificate, files.Key); err != nil {
		return own, nil, err
	}
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		return own, nil, err
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return own, nil, fmt.Errorf("%s holds no root", files.CA)
	}
	return own, roots, nil
}

// accept serves a port, each connection in a goroutine.
func accept(port uint16, serve func(*net.TCPConn)) error {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return nil
}

// maxHead of a request, with what proxies add to it.
const maxHead = 8 << 10

var headEnd = []byte("\r\n\r\n")

// answer answers the requests of a connection, none of which has a body, until it ends.
// What goes wrong is the client's to notice.
func answer(conn net.Conn, response []byte) {
	defer conn.Close()
	buffer, n := make([]byte, maxHead), 0
	for {
		k, err := conn.Read(buffer[n:])
		n += k
		for end := bytes.Index(buffer[:n], headEnd); end >= 0; end = bytes.Index(buffer[:n], headEnd) {
			n = copy(buffer, buffer[end+len(headEnd):n])
			if _, err := conn.Write(response); err != nil {
				return
			}
		}
		if err != nil || n == len(buffer) {
			return
		}
	}
}
