package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"testing"

	"github.com/ambit-mesh/ambit/internal/certs/certstest"
)

func TestControllerIsVerifiedByRootAndName(t *testing.T) {
	if err := verify(tls.ConnectionState{}, "controller", nil, nil); err == nil {
		t.Error("verified without roots")
	}
	pool := x509.NewCertPool()
	ca := certstest.NewCA(t, "cluster.local")
	pool.AddCert(ca.Bundle()[0])
	if err := verify(tls.ConnectionState{}, "controller", pool, nil); err == nil {
		t.Error("verified without a certificate")
	}
	// A root, which is nobody's serving certificate, has no name of a host.
	if err := verify(tls.ConnectionState{PeerCertificates: ca.Bundle()}, "controller", pool, nil); err == nil {
		t.Error("verified under another name")
	}
	other := certstest.NewCA(t, "cluster.local")
	if err := verify(tls.ConnectionState{PeerCertificates: other.Bundle()}, "controller", pool, nil); err == nil {
		t.Error("verified by another root")
	}
}
