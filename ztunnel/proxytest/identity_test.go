package proxytest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// misissued are certificates that the mesh's own authority signed, and that open
// nothing all the same: no tunnel to a pod, and none from one.
var misissued = map[string]struct {
	change             func(*x509.Certificate)
	asClient, asServer bool
}{
	"as it should be": {func(*x509.Certificate) {}, true, true},
	"two identities": {func(c *x509.Certificate) {
		c.URIs = append(c.URIs, spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: "admin"}.URL())
	}, false, false},
	"another identity first": {func(c *x509.Certificate) {
		c.URIs = append([]*url.URL{spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: "admin"}.URL()}, c.URIs...)
	}, false, false},
	"the same identity twice": {func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs...) }, false, false},
	"an address besides":      {func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "https", Host: "example.org"}) }, false, false},
	"an identity in a DNS name": {func(c *x509.Certificate) {
		c.DNSNames, c.URIs = []string{"peer.shop.svc"}, nil
	}, false, false},
	"for clients alone":  {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, true, false},
	"for servers alone":  {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, false, true},
	"for nothing":        {func(c *x509.Certificate) { c.ExtKeyUsage = nil }, false, false},
	"for anything":       {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, false, false},
	"without signatures": {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, false, false},
	"an authority's":     {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, false, false},
	"not valid yet": {func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Minute), time.Now().Add(time.Hour)
	}, false, false},
	"expired": {func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
	}, false, false},
}

// TestMisissuedCertificatesCallNobody: who shows one at a pod's tunnel port gets no
// answer to any request.
func TestMisissuedCertificatesCallNobody(t *testing.T) {
	m, caller, server := stranger(t)
	echoing(server)
	for name, c := range misissued {
		caller.certificates = []tls.Certificate{m.CA.Issue(caller.id, time.Hour, c.change)}
		status, body := caller.connect(t, server, addrOf(server, AppPort), "x")
		if got := status == http.StatusOK && body == "x"; got != c.asClient || !c.asClient && status != 0 {
			t.Errorf("%s: answered %d, %q", name, status, body)
		}
	}
	refused := 0
	for _, c := range misissued {
		if !c.asClient {
			refused++
		}
	}
	m.await("every refusal counted", func() bool {
		return m.metric("ambit_hbone_refused_total", "reason", "TLSFailed") == float64(refused)
	})
}

// TestMisissuedCertificatesServeNobody: a connection to whoever shows one is reset,
// and no byte of it leaves.
func TestMisissuedCertificatesServeNobody(t *testing.T) {
	for name, c := range misissued {
		t.Run(name, func(t *testing.T) {
			m := New(t)
			client, server := m.Pod("client"), m.Pod("server")
			client.StartOutbound()
			var asked atomic.Bool
			serveHTTP2(t, m, server, func(w http.ResponseWriter, r *http.Request) {
				asked.Store(true)
				w.Write([]byte("hi"))
				http.NewResponseController(w).Flush()
				io.Copy(w, r.Body)
			}, c.change)
			if c.asServer {
				hear(t, client.Connect(server.Addr), "hi")
				return
			}
			client.Refused(server.Addr)
			want(t, m.ofDirection("outbound"), map[string]any{"reason": "TLSFailed", "response_flags": "TLS_FAILURE"})
			if asked.Load() {
				t.Error("a request was sent")
			}
		})
	}
}
