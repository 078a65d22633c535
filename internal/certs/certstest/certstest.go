// Package certstest is a certificate authority in memory, for tests.
package certstest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// CA is a certificate authority for one trust domain.
type CA struct {
	t    testing.TB
	root *x509.Certificate
	key  crypto.Signer
	// cert signs: the root, or an intermediate, which then goes along with each leaf.
	cert *x509.Certificate
	// TTL of what Fetch signs.
	TTL time.Duration
}

// NewCA makes an authority with a root of its own.
func NewCA(t testing.TB, trustDomain string) *CA {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "test root of " + trustDomain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{t: t, root: root, cert: root, key: key, TTL: 24 * time.Hour}
}

// Intermediate makes an authority below the same root.
func (ca *CA) Intermediate() *CA {
	ca.t.Helper()
	key := newKey(ca.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(ca.t), Subject: pkix.Name{CommonName: "test intermediate"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, ca.root, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return &CA{t: ca.t, root: ca.root, cert: cert, key: key, TTL: ca.TTL}
}

// Certificate returns what signs: the root, or an intermediate's.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// below are the certificates between a leaf and the root.
func (ca *CA) below() [][]byte {
	if ca.cert == ca.root {
		return nil
	}
	return [][]byte{ca.cert.Raw}
}

// Issue returns a certificate and key for id, valid from now for ttl; with changes,
// whatever those make of it.
func (ca *CA) Issue(id spiffe.ID, ttl time.Duration, changes ...func(*x509.Certificate)) tls.Certificate {
	ca.t.Helper()
	key := newKey(ca.t)
	der, err := ca.sign(key.Public(), []*url.URL{id.URL()}, ttl, changes...)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, ca.below()...), PrivateKey: key, Leaf: leaf}
}

// Fetch signs a request, as certs.Config.Fetch wants it.
func (ca *CA) Fetch(_ context.Context, id spiffe.ID, csrPEM []byte) ([]string, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("the request is no PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, err
	}
	der, err := ca.sign(request.PublicKey, []*url.URL{id.URL()}, ca.TTL)
	if err != nil {
		return nil, err
	}
	chain := []string{PEM(der)}
	for _, above := range ca.below() {
		chain = append(chain, PEM(above))
	}
	return append(chain, PEM(ca.root.Raw)), nil
}

// Bundle returns the roots, as certs.Config.Bundle wants it.
func (ca *CA) Bundle() []*x509.Certificate { return []*x509.Certificate{ca.root} }

func (ca *CA) sign(key crypto.PublicKey, names []*url.URL, ttl time.Duration, changes ...func(*x509.Certificate)) ([]byte, error) {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: number, URIs: names,
		NotBefore: time.Now(), NotAfter: time.Now().Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, change := range changes {
		change(template)
	}
	return x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// PEM encodes a certificate.
func PEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
