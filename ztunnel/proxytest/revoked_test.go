package proxytest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/revocation"
)

// theCertificate is a list with one certificate.
func theCertificate(issuer, certificate *x509.Certificate) *mesh.RevocationList {
	return &mesh.RevocationList{Certificates: []*mesh.RevokedCertificates{{
		Issuer: revocation.KeyID(issuer), Serials: []string{revocation.SerialOf(certificate)},
	}}}
}

// A key has leaked: the tunnels of the pod whose certificate is revoked end within
// a second, whoever opened them, and what was on its way in them; those of others
// go on. The pod's own node has another certificate at once, so the pod works on.
func TestRevocationCutsLiveConnectionsAndNoOthers(t *testing.T) {
	m := New(t)
	leaked, peer, other := m.Pod("leaked").Start(), m.Pod("peer").Start(), m.Pod("other").Start()
	echoing(leaked)
	echoing(peer)
	certificate, err := m.Certs.Get(t.Context(), leaked.ID)
	if err != nil {
		t.Fatal(err)
	}
	open := func(from, to *Pod) *net.TCPConn {
		t.Helper()
		conn := from.Connect(to.Addr)
		say(t, conn, "x")
		hear(t, conn, "x")
		return conn
	}
	fromIt, toIt, others := open(leaked, peer), open(peer, leaked), open(other, peer)

	time.Sleep(600 * time.Millisecond) // a certificate that has only just come is not replaced sooner
	m.Revoke(theCertificate(m.CA.Certificate(), certificate.Leaf))
	began := time.Now()
	hearReset(t, fromIt)
	hearReset(t, toIt)
	if took := time.Since(began); took > time.Second {
		t.Errorf("cut after %s, a second is the most", took)
	}
	say(t, others, "y")
	hear(t, others, "y")
	// One side of each has judged the peer's certificate.
	var inbound, outbound bool
	m.await("both sides' records", func() bool {
		for _, line := range m.lines.access(t) {
			if line["reason"] == "Revoked" {
				inbound = inbound || line["direction"] == "inbound" && line["src.identity"] == leaked.ID.String()
				outbound = outbound || line["direction"] == "outbound" && line["dst.identity"] == leaked.ID.String()
			}
		}
		return inbound && outbound
	})
	if n := m.metric("ambit_connection_ends_total", "reason", "Revoked"); n != 2 {
		t.Errorf("%v connections are counted as revoked, want 2", n)
	}
	if n := m.metric("ambit_pool_tunnel_ends_total", "reason", "distrusted"); n != 1 {
		t.Errorf("%v tunnels of the outbound side are counted as distrusted, want 1", n)
	}

	open(leaked, peer)
	open(peer, leaked)
	if now, err := m.Certs.Get(t.Context(), leaked.ID); err != nil || now.Leaf.Equal(certificate.Leaf) {
		t.Errorf("the pod's certificate: %v, or the same one", err)
	}
}

// Who has stolen a key is refused as a client once its certificate, its identity's
// older ones, or the authority above it are revoked, and the honest pod is not.
func TestAStolenKeyOpensNothing(t *testing.T) {
	m, thief, server := stranger(t)
	echoing(server)
	honest := m.CA.Issue(thief.id, time.Hour)
	between := m.CA.Intermediate()
	stolen := m.CA.Issue(thief.id, time.Hour)
	status := func(with tls.Certificate) int {
		thief.certificates = []tls.Certificate{with}
		status, _ := thief.connect(t, server, addrOf(server, AppPort), "x")
		return status
	}
	if got := status(stolen); got != http.StatusOK {
		t.Fatalf("before anything is revoked: %d", got)
	}
	m.Revoke(theCertificate(m.CA.Certificate(), stolen.Leaf))
	if got := status(stolen); got != 0 {
		t.Errorf("with a revoked certificate: %d", got)
	}
	if got := status(honest); got != http.StatusOK {
		t.Errorf("with another certificate of the same identity: %d", got)
	}
	if n := m.metric("ambit_hbone_refused_total", "reason", "Revoked"); n == 0 {
		t.Error("no tunnel is counted as refused")
	}
	m.Revoke(theCertificate(m.CA.Certificate(), between.Certificate()))
	if got := status(between.Issue(thief.id, time.Hour)); got != 0 {
		t.Errorf("below a revoked authority: %d", got)
	}
	m.Revoke(&mesh.RevocationList{Identities: []*mesh.RevokedIdentity{{
		Identity: thief.id.String(), BegunBefore: honest.Leaf.NotBefore.Unix() + 1,
	}}})
	if got := status(honest); got != 0 {
		t.Errorf("with one of before the identity's moment: %d", got)
	}
}

// A server that shows a revoked certificate gets no connection: what is connected
// there is reset, and an open tunnel is cut.
func TestAStolenKeyServesNobody(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client"), m.Pod("server")
	client.StartOutbound()
	shown := serveHTTP2(t, m, server, func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("hi"))
		http.NewResponseController(w).Flush()
		io.Copy(w, r.Body)
	})
	conn := client.Connect(server.Addr)
	hear(t, conn, "hi")
	m.Revoke(theCertificate(m.CA.Certificate(), shown))
	hearReset(t, conn)
	client.Refused(server.Addr)
	m.await("both records", func() bool { return m.metric("ambit_connection_ends_total", "reason", "Revoked") == 2 })
}

// A tunnel in which there is nothing at the time is cut as well.
func TestRevocationEndsIdleTunnels(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	echoing(server)
	conn := client.Connect(server.Addr)
	say(t, conn, "x")
	hear(t, conn, "x")
	conn.Close()
	certificate, err := m.Certs.Get(t.Context(), server.ID)
	if err != nil {
		t.Fatal(err)
	}
	m.await("the end of the connection", func() bool { return m.metric("ambit_pool_streams", "", "") == 0 })
	if n := m.metric("ambit_pool_tunnels", "", ""); n != 1 {
		t.Fatalf("%v tunnels", n)
	}
	m.Revoke(theCertificate(m.CA.Certificate(), certificate.Leaf))
	m.await("the end of the tunnel", func() bool { return m.metric("ambit_pool_tunnels", "", "") == 0 })

	// The same seen from the other side: it is the client's certificate.
	conn = client.Connect(server.Addr)
	say(t, conn, "x")
	hear(t, conn, "x")
	conn.Close()
	if certificate, err = m.Certs.Get(t.Context(), client.ID); err != nil {
		t.Fatal(err)
	}
	m.Revoke(theCertificate(m.CA.Certificate(), certificate.Leaf))
	m.await("the end of the tunnel, and its record", func() bool {
		return m.metric("ambit_pool_tunnels", "", "") == 0 && m.metric("ambit_hbone_refused_total", "reason", "Revoked") == 1
	})
}

// Roots that are taken back end tunnels at the source, too.
func TestDistrustEndsTunnelsAtTheSource(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client"), m.Pod("server")
	client.StartOutbound()
	serveHTTP2(t, m, server, func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("hi"))
		http.NewResponseController(w).Flush()
		io.Copy(w, r.Body)
	})
	conn := client.Connect(server.Addr)
	hear(t, conn, "hi")
	m.Trust(New(t).CA)
	hearReset(t, conn)
	want(t, m.ofDirection("outbound"), map[string]any{"reason": "Distrusted"})
}
