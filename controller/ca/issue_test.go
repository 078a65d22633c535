package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

var cart = spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: "cart"}

// clock is a time that a test moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func testAuthority(t *testing.T) (*Authority, *clock) {
	t.Helper()
	c := &clock{now: start}
	return authorityOf(t, testRoot(t), c.Now), c
}

// authorityOf returns an authority that signs with an intermediate of a root.
func authorityOf(t *testing.T, root *Root, now func() time.Time) *Authority {
	t.Helper()
	issuer, err := newIssuer(root, trustDomain, start)
	if err != nil {
		t.Fatal(err)
	}
	a := NewAuthority(AuthorityConfig{TrustDomain: trustDomain, SystemNamespace: system, Now: now, Logger: quiet()})
	a.Use(issuer, Bundle{Roots: []string{root.PEM()}})
	return a
}

// ecKey returns a new key.
func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// csr returns a signing request in PEM.
func csr(t *testing.T, key crypto.Signer, template x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return requestPEM(der)
}

// requestFor asks for names that are URIs.
func requestFor(t *testing.T, names ...string) x509.CertificateRequest {
	t.Helper()
	return x509.CertificateRequest{URIs: uris(t, names...)}
}

func requestPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func uris(t *testing.T, texts ...string) (parsed []*url.URL) {
	t.Helper()
	for _, text := range texts {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, u)
	}
	return parsed
}

func parsePEM(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 {
		t.Fatalf("not one PEM block: %q", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestIssuedCertificate(t *testing.T) {
	authority, _ := testAuthority(t)
	key := ecKey(t, elliptic.P256())
	chain, _, err := authority.Issue(cart, csr(t, key, x509.CertificateRequest{URIs: uris(t, cart.String())}), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 || chain[2] != authority.Bundle().Roots[0] {
		t.Fatalf("a chain of %d, want the leaf, the intermediate and the roots", len(chain))
	}
	intermediate := parsePEM(t, chain[1])
	if !intermediate.IsCA || !intermediate.MaxPathLenZero || intermediate.CheckSignatureFrom(parsePEM(t, chain[2])) != nil {
		t.Error("the second is not an intermediate of the root for leaves only")
	}
	leaf := parsePEM(t, chain[0])
	if id, err := spiffe.FromCertificate(leaf); err != nil || id != cart {
		t.Errorf("identity %v, %v", id, err)
	}
	if len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		t.Error("names besides the identity")
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("another key than the requester's")
	}
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}) || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("usages %v, %v", leaf.ExtKeyUsage, leaf.KeyUsage)
	}
	if leaf.IsCA || !leaf.BasicConstraintsValid {
		t.Error("the leaf may sign")
	}
	if !leaf.NotBefore.Equal(start.Add(-2*time.Minute)) || !leaf.NotAfter.Equal(start.Add(24*time.Hour)) {
		t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
	if bits := leaf.SerialNumber.BitLen(); bits > 128 || bits < 64 {
		t.Errorf("a serial number of %d bits", bits)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(chain[2]))
	intermediates := x509.NewCertPool()
	intermediates.AddCert(intermediate)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("verify for %v: %v", usage, err)
		}
	}
}

func TestNothingButTheKeyIsTakenFromARequest(t *testing.T) {
	authority, _ := testAuthority(t)
	request := requestFor(t, cart.String())
	request.Subject.CommonName = "spiffe://cluster.local/ns/kube-system/sa/admin"
	request.ExtraExtensions = append(request.ExtraExtensions, basicConstraintsCA)
	_, leaf, err := authority.Issue(cart, csr(t, ecKey(t, elliptic.P256()), request), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if leaf.IsCA || leaf.Subject.CommonName != "" {
		t.Errorf("CA %v, subject %v", leaf.IsCA, leaf.Subject)
	}
}

func TestSerialNumbersDiffer(t *testing.T) {
	authority, _ := testAuthority(t)
	request := csr(t, ecKey(t, elliptic.P256()), requestFor(t, cart.String()))
	var before *big.Int
	for range 3 {
		_, leaf, err := authority.Issue(cart, request, 0)
		if err != nil {
			t.Fatal(err)
		}
		if before != nil && leaf.SerialNumber.Cmp(before) == 0 {
			t.Error("two certificates have one serial number")
		}
		before = leaf.SerialNumber
	}
}

func TestLifetimes(t *testing.T) {
	authority, c := testAuthority(t)
	request := csr(t, ecKey(t, elliptic.P256()), requestFor(t, cart.String()))
	for seconds, want := range map[int64]time.Duration{
		0: 24 * time.Hour, -1: 24 * time.Hour, 60: time.Minute, 86400: 24 * time.Hour, 86401: 24 * time.Hour,
		1 << 62: 24 * time.Hour, -1 << 62: 24 * time.Hour, 18446744074: 24 * time.Hour,
	} {
		_, leaf, err := authority.Issue(cart, request, lifetime(seconds))
		if err != nil {
			t.Fatal(err)
		}
		if got := leaf.NotAfter.Sub(start); got != want {
			t.Errorf("%d s asked, %v given, want %v", seconds, got, want)
		}
	}
	// Nobody outlives his issuer, and an expired one signs nothing.
	end := authority.issuer.cert.NotAfter
	c.now = end.Add(-time.Hour)
	if _, leaf, err := authority.Issue(cart, request, 0); err != nil || !leaf.NotAfter.Equal(end) {
		t.Errorf("at the issuer's end: %v", err)
	}
	c.now = end.Add(time.Second)
	if _, _, err := authority.Issue(cart, request, 0); err == nil {
		t.Error("an expired issuer signed")
	}
}

func TestAcceptedKeys(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	authority, _ := testAuthority(t)
	for title, c := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{
		"P-256": {ecKey(t, elliptic.P256()), true}, "P-384": {ecKey(t, elliptic.P384()), true}, "P-521": {ecKey(t, elliptic.P521()), true},
		"Ed25519": {ed, true}, "RSA 2048": {strong, true}, "RSA 1024": {weak, false}, "P-224": {ecKey(t, elliptic.P224()), false},
	} {
		_, _, err := authority.Issue(cart, csr(t, c.key, requestFor(t, cart.String())), 0)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", title, err)
		}
	}
}

func TestRefusedRequests(t *testing.T) {
	authority, _ := testAuthority(t)
	key := ecKey(t, elliptic.P256())
	good := csr(t, key, x509.CertificateRequest{URIs: uris(t, cart.String())})
	der, _ := pem.Decode([]byte(good))
	forged := slices.Clone(der.Bytes)
	forged[len(forged)-1] ^= 1
	for title, c := range map[string]struct {
		csr     string
		foreign bool
	}{
		"empty":                 {"", false},
		"not PEM":               {"hello", false},
		"another kind of PEM":   {authority.Bundle().Roots[0], false},
		"two requests":          {good + good, false},
		"cut":                   {requestPEM(der.Bytes[:len(der.Bytes)/2]), false},
		"oversized":             {good + strings.Repeat("\n", maxRequestBytes), false},
		"signature of another":  {requestPEM(forged), false},
		"no name at all":        {csr(t, key, x509.CertificateRequest{}), false},
		"an empty fragment":     {csr(t, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{alternativeNames(t, cart.String()+"#")}}), false},
		"a NUL":                 {csr(t, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{alternativeNames(t, cart.String()+"\x00")}}), false},
		"a name of no kind":     {csr(t, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: []byte{0x30, 0x00}}}}), false},
		"another identity":      {csr(t, key, x509.CertificateRequest{URIs: uris(t, "spiffe://cluster.local/ns/shop/sa/pay")}), true},
		"another trust domain":  {csr(t, key, x509.CertificateRequest{URIs: uris(t, "spiffe://evil/ns/shop/sa/cart")}), true},
		"two identities":        {csr(t, key, x509.CertificateRequest{URIs: uris(t, cart.String(), "spiffe://cluster.local/ns/shop/sa/pay")}), true},
		"the same twice":        {csr(t, key, x509.CertificateRequest{URIs: uris(t, cart.String(), cart.String())}), true},
		"a DNS name besides it": {csr(t, key, x509.CertificateRequest{URIs: uris(t, cart.String()), DNSNames: []string{"controller.ambit-system.svc"}}), true},
		"an IP address":         {csr(t, key, x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}), true},
		"an e-mail address":     {csr(t, key, x509.CertificateRequest{EmailAddresses: []string{"a@example.org"}}), true},
	} {
		chain, _, err := authority.Issue(cart, c.csr, 0)
		if err == nil || chain != nil {
			t.Errorf("%s: signed", title)
			continue
		}
		if _, ok := errors.AsType[*requestError](err); !ok || errors.Is(err, errForeignName) != c.foreign {
			t.Errorf("%s: %v", title, err)
		}
	}
}

// alternativeNames is an extension with URIs, byte for byte.
func alternativeNames(t *testing.T, names ...string) pkix.Extension {
	t.Helper()
	var raw []asn1.RawValue
	for _, name := range names {
		raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(name)})
	}
	value, err := asn1.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

func TestServingCertificate(t *testing.T) {
	authority, c := testAuthority(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authority.Bundle().Roots[0]))
	for _, name := range []string{"controller.ambit-system.svc", "controller.ambit-system.svc.cluster.local", "localhost"} {
		client, server := net.Pipe()
		go func() {
			_ = tls.Server(server, &tls.Config{GetCertificate: authority.GetCertificate, Time: c.Now}).Handshake()
			_ = server.Close()
		}()
		if err := tls.Client(client, &tls.Config{RootCAs: roots, ServerName: name, Time: c.Now}).Handshake(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = client.Close()
	}
	first, err := authority.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spiffe.FromCertificate(first.Leaf); err == nil {
		t.Error("the serving certificate is a workload's identity as well")
	}
	c.now = start.Add(11 * time.Hour)
	if same, err := authority.GetCertificate(nil); err != nil || same != first {
		t.Errorf("renewed before half its life: %v", err)
	}
	c.now = start.Add(13 * time.Hour)
	renewed, err := authority.GetCertificate(nil)
	if err != nil || renewed == first || !renewed.Leaf.NotAfter.Equal(c.now.Add(24*time.Hour)) {
		t.Errorf("not renewed after half its life: %v", err)
	}
}
