package spiffe_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// name is one GeneralName: its context-specific tag and its bytes.
type name struct {
	tag   int
	value string
}

const (
	tagDNS = 2
	tagURI = 6
)

// certificate signs a certificate with exactly these alternative names, byte
// for byte, as a hostile issuer could.
func certificate(t *testing.T, names ...name) *x509.Certificate {
	t.Helper()
	var raw []asn1.RawValue
	for _, n := range names {
		raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n.tag, Bytes: []byte(n.value)})
	}
	san, err := asn1.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	if len(names) > 0 {
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("crypto/x509 already refuses this certificate: %v", err)
	}
	return cert
}

func TestFromCertificate(t *testing.T) {
	want := spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"}
	for title, names := range map[string][]name{
		"one URI":               {{tagURI, "spiffe://cluster.local/ns/shop/sa/cart"}},
		"a DNS name besides it": {{tagDNS, "cart.shop.svc"}, {tagURI, "spiffe://cluster.local/ns/shop/sa/cart"}},
	} {
		if got, err := spiffe.FromCertificate(certificate(t, names...)); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", title, got, err, want)
		}
	}
}

func TestFromCertificateRefuses(t *testing.T) {
	for title, names := range map[string][]name{
		"no names":             nil,
		"only a DNS name":      {{tagDNS, "cart.shop.svc"}},
		"two identities":       {{tagURI, "spiffe://td/ns/a/sa/b"}, {tagURI, "spiffe://td/ns/a/sa/c"}},
		"the same twice":       {{tagURI, "spiffe://td/ns/a/sa/b"}, {tagURI, "spiffe://td/ns/a/sa/b"}},
		"another URI besides":  {{tagURI, "spiffe://td/ns/a/sa/b"}, {tagURI, "https://example.org/"}},
		"identity as DNS name": {{tagDNS, "spiffe.td"}},
		"scheme in upper case": {{tagURI, "SPIFFE://td/ns/a/sa/b"}},
		"empty fragment":       {{tagURI, "spiffe://td/ns/a/sa/b#"}},
		"empty query":          {{tagURI, "spiffe://td/ns/a/sa/b?"}},
		"percent-encoding":     {{tagURI, "spiffe://td/ns/%61/sa/b"}},
	} {
		if id, err := spiffe.FromCertificate(certificate(t, names...)); !errors.Is(err, spiffe.ErrMalformed) {
			t.Errorf("%s: %v, %v; want ErrMalformed", title, id, err)
		}
	}
}

// A signing request asks for exactly one name: other kinds, which a certificate may
// have besides, are too many.
func TestFromRequest(t *testing.T) {
	identity := name{tagURI, "spiffe://cluster.local/ns/shop/sa/cart"}
	for title, c := range map[string]struct {
		names []name
		want  error
	}{
		"one URI":               {[]name{identity}, nil},
		"none":                  {nil, spiffe.ErrMalformed},
		"two URIs":              {[]name{identity, {tagURI, "spiffe://cluster.local/ns/shop/sa/pay"}}, spiffe.ErrManyNames},
		"the same twice":        {[]name{identity, identity}, spiffe.ErrManyNames},
		"a DNS name besides it": {[]name{identity, {tagDNS, "cart.shop.svc"}}, spiffe.ErrManyNames},
		"a DNS name":            {[]name{{tagDNS, "cart.shop.svc"}}, spiffe.ErrManyNames},
		"scheme in upper case":  {[]name{{tagURI, "SPIFFE://cluster.local/ns/shop/sa/cart"}}, spiffe.ErrMalformed},
	} {
		got, err := spiffe.FromRequest(&x509.CertificateRequest{Extensions: certificate(t, c.names...).Extensions})
		if !errors.Is(err, c.want) || (err == nil) != (got.String() == identity.value) {
			t.Errorf("%s: %v, %v; want %v", title, got, err, c.want)
		}
	}
}
