package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"
)

// What a leader leaves to the next one counts if the same issuer signed that text under that name, whatever kind its key is of.
func TestARecordIsTheIssuersOwn(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := testAuthority(t)
	for kind, key := range map[string]crypto.Signer{"ecdsa": curve, "ed25519": edwards, "rsa": large} {
		template := authorityTemplate(kind)
		template.SignatureAlgorithm = x509.UnknownSignatureAlgorithm
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		a := NewAuthority(AuthorityConfig{})
		if _, err := a.SignRecord("bindings", nil); err == nil {
			t.Error("signed with nothing to sign with")
		}
		a.Use(&Issuer{cert: cert, key: key, root: cert}, Bundle{})
		signature, err := a.SignRecord("bindings", []byte("text"))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if err := a.CheckRecord("bindings", []byte("text"), signature); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		// What is signed is no DER, whatever the text is.
		algorithm, _ := recordAlgorithm(key.Public())
		if err := cert.CheckSignature(algorithm, []byte("ambit record\n\"bindings\"\ntext"), signature); err != nil {
			t.Errorf("%s: of something else: %v", kind, err)
		}
		for what, err := range map[string]error{
			"another text":               a.CheckRecord("bindings", []byte("texts"), signature),
			"another name":               a.CheckRecord("binding", []byte("text"), signature),
			"another bound between them": a.CheckRecord("binding", []byte("stext"), signature),
			"no signature":               a.CheckRecord("bindings", []byte("text"), nil),
			"its issuer":                 other.CheckRecord("bindings", []byte("text"), signature),
		} {
			if err == nil {
				t.Errorf("%s: %s counts", kind, what)
			}
		}
	}
}
