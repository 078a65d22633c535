package spiffe_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// FuzzFromCertificate: whatever alternative names a certificate has, byte for byte,
// an identity is found only in the one URI that spells it; and a signing request
// with the same names asks for that one, or is refused.
func FuzzFromCertificate(f *testing.F) {
	san := func(names ...name) []byte {
		var raw []asn1.RawValue
		for _, n := range names {
			raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n.tag, Bytes: []byte(n.value)})
		}
		b, err := asn1.Marshal(raw)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(san(name{tagURI, "spiffe://cluster.local/ns/shop/sa/cart"}), []byte(nil))
	f.Add(san(name{tagURI, "spiffe://td/ns/a/sa/b\x00"}, name{tagDNS, "x"}), san(name{tagURI, "spiffe://td/ns/a/sa/c"}))
	f.Add([]byte{0x30, 0x80, 0x86, 0x01}, []byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		cert := &x509.Certificate{}
		for _, value := range [][]byte{one, two} {
			if value != nil {
				cert.Extensions = append(cert.Extensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value})
			}
		}
		id, err := spiffe.FromCertificate(cert)
		if asked, err2 := spiffe.FromRequest(&x509.CertificateRequest{Extensions: cert.Extensions}); err2 == nil && (err != nil || asked != id) {
			t.Fatalf("a request for %v makes a certificate of %v, %v", asked, id, err)
		}
		if err != nil {
			return
		}
		if again, err := spiffe.Parse(id.String()); err != nil || again != id {
			t.Fatalf("found %v, which is none: %v", id, err)
		}
		uri := []byte(id.String())
		found := 0
		for _, e := range cert.Extensions {
			for i := 0; i+len(uri) <= len(e.Value); i++ {
				if string(e.Value[i:i+len(uri)]) == string(uri) {
					found++
				}
			}
		}
		if found == 0 {
			t.Fatalf("found %s, which is nowhere in it", id)
		}
	})
}
