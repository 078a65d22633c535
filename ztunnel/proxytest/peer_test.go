package proxytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// These are other implementations of HTTP/2 as peers: what they ask for and
// answer is RFC 9113 section 8.5, and all that Ambit may count on.

func TestClientThatIsPlainHTTP2(t *testing.T) {
	m, caller, server := stranger(t)
	peers := make(chan net.Addr, 1)
	server.App(func(c *net.TCPConn) {
		peers <- c.RemoteAddr()
		all, _ := io.ReadAll(c)
		c.Write(append([]byte("you said "), all...))
		c.Close()
	})
	status, body := caller.connect(t, server, addrOf(server, AppPort), "hello")
	if status != 200 || body != "you said hello" {
		t.Fatalf("answered %d, %q", status, body)
	}
	if seen := (<-peers).(*net.TCPAddr).AddrPort().Addr(); seen != caller.addr {
		t.Errorf("the application sees %s, the tunnel comes from %s", seen, caller.addr)
	}
	line := m.ofDirection("inbound")
	want(t, line, map[string]any{
		"reason": "Closed", "transport": "hbone", "bytes_recv": 5.0, "bytes_sent": 14.0,
		"src.identity": caller.id.String(), "dst.identity": server.ID.String(),
		"dst.addr": addrOf(server, 15008), "dst.hbone_addr": addrOf(server, AppPort),
	})
}

// What a request says about its client changes nothing.
func TestForwardedIsNotBelieved(t *testing.T) {
	_, caller, server := stranger(t)
	caller.header = http.Header{"Forwarded": {`for="10.9.77.7:1"`}, "X-Forwarded-For": {"10.9.77.7"}}
	server.App(func(c *net.TCPConn) {
		c.Write([]byte(c.RemoteAddr().(*net.TCPAddr).IP.String()))
		c.Close()
	})
	if status, body := caller.connect(t, server, addrOf(server, AppPort), ""); status != 200 || body != caller.addr.String() {
		t.Errorf("answered %d, the application sees %q", status, body)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	m, caller, server := stranger(t)
	server.App(func(*net.TCPConn) { t.Error("the application was reached") })
	other := m.Pod("other")
	other.App(func(*net.TCPConn) { t.Error("another pod's application was reached") })
	for _, c := range []struct {
		why, authority string
		status         int
	}{
		{"another pod", addrOf(other, AppPort), 400},
		{"this host", "127.0.0.1:8080", 400},
		{"a name", "server.shop.svc.cluster.local:8080", 400},
		{"a name that looks like one of ours", server.Addr.String() + ".:8080", 400},
		{"port 0", addrOf(server, 0), 400},
		{"our own outbound port", addrOf(server, 15001), 400},
		{"our own plaintext port", addrOf(server, 15006), 400},
		{"our own tunnel port", addrOf(server, 15008), 400},
		{"a port where nobody listens", addrOf(server, 9), 503},
	} {
		if status, _ := caller.connect(t, server, c.authority, ""); status != c.status {
			t.Errorf("%s, %s: answered %d, want %d", c.why, c.authority, status, c.status)
		}
	}
}

func TestMappedAddressIsTheSameAddress(t *testing.T) {
	_, caller, server := stranger(t)
	echoing(server)
	if status, body := caller.connect(t, server, "[::ffff:"+server.Addr.String()+"]:8080", "x"); status != 200 || body != "x" {
		t.Errorf("answered %d, %q", status, body)
	}
}

// Without a certificate of the mesh nobody gets as far as a request.
func TestPeersThatProveNothing(t *testing.T) {
	m, caller, server := stranger(t)
	server.App(func(*net.TCPConn) { t.Error("the application was reached") })
	other := New(t)
	for name, certificates := range map[string][]tls.Certificate{
		"no certificate":               nil,
		"another authority's":          {other.CA.Issue(caller.id, time.Hour)},
		"an expired one":               {m.CA.Issue(caller.id, -time.Minute)},
		"that of another trust domain": {m.CA.Issue(spiffe.ID{TrustDomain: "elsewhere", Namespace: "shop", ServiceAccount: "caller"}, time.Hour)},
	} {
		caller.certificates = certificates
		if status, _ := caller.connect(t, server, addrOf(server, AppPort), ""); status != 0 {
			t.Errorf("%s: answered %d", name, status)
		}
	}
	for _, line := range m.Access(4) {
		want(t, line, map[string]any{"direction": "inbound", "reason": "TLSFailed", "response_flags": "TLS_FAILURE"})
	}
}

func TestServerThatIsPlainHTTP2(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client"), m.Pod("server")
	client.StartOutbound()
	requests := make(chan *http.Request, 1)
	serveHTTP2(t, m, server, func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		rc := http.NewResponseController(w)
		rc.Flush()
		all, _ := io.ReadAll(r.Body)
		w.Write(append([]byte("you said "), all...))
	})
	conn := client.Connect(server.Addr)
	say(t, conn, "hello")
	conn.CloseWrite()
	hear(t, conn, "you said hello")
	hearEOF(t, conn)

	r := <-requests
	if r.Method != http.MethodConnect || r.Host != addrOf(server, firstCaptured) {
		t.Errorf("asked for %s %s", r.Method, r.Host)
	}
	for name, pattern := range map[string]string{
		"Forwarded":   `^for="` + regexp.QuoteMeta(conn.LocalAddr().String()) + `"$`,
		"Traceparent": `^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`,
		"Baggage":     `^k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client$`,
	} {
		if got := strings.Join(r.Header[name], "|"); !regexp.MustCompile(pattern).MatchString(got) {
			t.Errorf("%s is %q", name, got)
		}
	}
	if id, err := certs.PeerID(*r.TLS); err != nil || id != client.ID {
		t.Errorf("the peer sees the client as %s, %v", id, err)
	}
	want(t, m.ofDirection("outbound"), map[string]any{"reason": "Closed", "bytes_sent": 5.0, "bytes_recv": 14.0})
}

func TestServersRefusals(t *testing.T) {
	for status, reason := range map[int]string{400: "TunnelRefused", 401: "PolicyDenied", 404: "TunnelRefused", 503: "TunnelRefused"} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			m := New(t)
			client, server := m.Pod("client"), m.Pod("server")
			client.StartOutbound()
			serveHTTP2(t, m, server, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
			client.Refused(server.Addr)
			want(t, m.ofDirection("outbound"), map[string]any{"reason": reason})
		})
	}
}

// caller is a peer with a certificate, and the plain client of golang.org/x/net.
type caller struct {
	id           spiffe.ID
	addr         netip.Addr
	certificates []tls.Certificate
	header       http.Header
}

func stranger(t *testing.T) (*Mesh, *caller, *Pod) {
	m := New(t)
	server := m.Pod("server").Start()
	p := m.Pod("caller")
	return m, &caller{id: p.ID, addr: p.Addr, header: http.Header{}, certificates: []tls.Certificate{m.CA.Issue(p.ID, time.Hour)}}, server
}

// connect asks for a connection to authority, sends a body and returns what came
// back; status 0 if there was no answer.
func (c *caller) connect(t *testing.T, server *Pod, authority, body string) (status int, answer string) {
	t.Helper()
	transport := &http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			raw, err := dialFrom(ctx, c.addr, netip.AddrPortFrom(server.Addr, 15008))
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, &tls.Config{Certificates: c.certificates, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			return conn, conn.HandshakeContext(ctx)
		},
	}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r := (&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority,
		Header: c.header, Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1,
	}).WithContext(ctx)
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Logf("not answered: %v", err)
		return 0, ""
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		t.Errorf("read the answer: %v", err)
	}
	return response.StatusCode, string(all)
}

// serveHTTP2 stands in for the pod's tunnel end, and returns the certificate that it
// shows, with changes.
func serveHTTP2(t *testing.T, m *Mesh, p *Pod, handler http.HandlerFunc, changes ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	return serveHTTP2Until(t, m, p, time.Hour, handler, changes...)
}

// serveHTTP2Until does so with a certificate of another life.
func serveHTTP2Until(t *testing.T, m *Mesh, p *Pod, life time.Duration, handler http.HandlerFunc, changes ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	certificate := m.CA.Issue(p.ID, life, changes...)
	l := p.Listen(15008)
	s := &http.Server{Handler: handler, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequireAnyClientCert,
		NextProtos:   []string{"h2"},
	}}
	if err := http2.ConfigureServer(s, nil); err != nil {
		t.Fatal(err)
	}
	go s.ServeTLS(l, "", "")
	t.Cleanup(func() { s.Close() })
	return certificate.Leaf
}

func addrOf(p *Pod, port uint16) string { return netip.AddrPortFrom(p.Addr, port).String() }
