package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// start is when the tests' clocks begin.
var start = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

const trustDomain = "cluster.local"

func testRoot(t *testing.T) *Root {
	t.Helper()
	root, err := newRoot(trustDomain, start)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func stored(root *Root) map[string][]byte {
	return map[string][]byte{"tls.crt": root.certPEM, "tls.key": root.keyPEM}
}

// signed returns a certificate made from a template, in PEM, and its key.
func signed(t *testing.T, template *x509.Certificate, parent *Root) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(1)
	}
	signer, signerCert := any(key), template
	if parent != nil {
		signer, signerCert = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signerCert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

func TestNewRootIsAcceptedWhenReadBack(t *testing.T) {
	root := testRoot(t)
	read, problem := parseRoot(stored(root), start)
	if problem != nil {
		t.Fatal(problem)
	}
	if !read.cert.Equal(root.cert) {
		t.Error("another certificate came back")
	}
	key, ok := root.key.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		t.Errorf("the key is %T, want EC P-256", root.key)
	}
	if got := root.cert.NotAfter.Sub(start); got != 10*365*24*time.Hour {
		t.Errorf("valid for %v", got)
	}
	if !root.cert.IsCA || root.cert.MaxPathLen != 1 || root.cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Error("the certificate's constraints are not a root's")
	}
}

func TestStoredRootOfAnotherMaker(t *testing.T) {
	cert, key := signed(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "our own"}, NotBefore: start.Add(-time.Hour), NotAfter: start.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	if _, problem := parseRoot(map[string][]byte{"tls.crt": cert, "tls.key": key}, start); problem != nil {
		t.Errorf("a root with a key in SEC 1 form: %v", problem)
	}
}

func TestStoredRootThatIsNone(t *testing.T) {
	good, other := testRoot(t), testRoot(t)
	leaf, leafKey := signed(t, &x509.Certificate{NotBefore: start.Add(-time.Hour), NotAfter: start.Add(time.Hour)}, nil)
	intermediate, intermediateKey := signed(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "intermediate"}, NotBefore: start.Add(-time.Hour), NotAfter: start.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, good)
	for title, c := range map[string]struct {
		cert, key []byte
		code      Code
		field     string
	}{
		"no certificate":           {nil, good.keyPEM, RootMalformed, "tls.crt"},
		"no key":                   {good.certPEM, nil, RootMalformed, "tls.key"},
		"not PEM":                  {[]byte("hello"), good.keyPEM, RootMalformed, "tls.crt"},
		"truncated":                {good.certPEM[:len(good.certPEM)/2], good.keyPEM, RootMalformed, "tls.crt"},
		"DER cut":                  {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.cert.Raw[:40]}), good.keyPEM, RootMalformed, "tls.crt"},
		"two certificates":         {bytes.Join([][]byte{good.certPEM, other.certPEM}, nil), good.keyPEM, RootMalformed, "tls.crt"},
		"fields swapped":           {good.keyPEM, good.certPEM, RootMalformed, "tls.crt"},
		"a certificate as the key": {good.certPEM, good.certPEM, RootMalformed, "tls.key"},
		"a leaf":                   {leaf, leafKey, RootMalformed, "tls.crt"},
		"an intermediate":          {intermediate, intermediateKey, RootMalformed, "tls.crt"},
		"another's key":            {good.certPEM, other.keyPEM, RootKeyMismatch, "tls.key"},
	} {
		root, problem := parseRoot(map[string][]byte{"tls.crt": c.cert, "tls.key": c.key}, start)
		if root != nil || problem == nil || problem.Code != c.code || problem.Field != c.field {
			t.Errorf("%s: root %v, problem %v; want %s of %s", title, root, problem, c.code, c.field)
		}
	}
	for title, now := range map[string]time.Time{"expired": start.Add(rootLifetime + time.Second), "not yet valid": start.Add(-Backdate - time.Second)} {
		if _, problem := parseRoot(stored(good), now); problem == nil || problem.Code != RootExpired {
			t.Errorf("%s: %v", title, problem)
		}
	}
}

func TestProblemsDoNotQuoteTheKey(t *testing.T) {
	root := testRoot(t)
	secret := "c2VjcmV0IGtleSBieXRlcw=="
	broken := []byte("-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n")
	_, problem := parseRoot(map[string][]byte{"tls.crt": root.certPEM, "tls.key": broken}, start)
	if problem == nil {
		t.Fatal("a key of nonsense was accepted")
	}
	if text := problem.Error(); strings.Contains(text, secret) || strings.Contains(text, "secret key bytes") {
		t.Errorf("the error holds the key: %s", text)
	}
}
