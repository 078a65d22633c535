package jwt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// authority is a certificate that signs itself.
func authority(t *testing.T, serial int64) (certificate *x509.Certificate, text string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// What is not certificates alone names nobody: to leave out what cannot be read would be to
// trust others than were meant.
func TestAuthorities(t *testing.T) {
	first, one := authority(t, 1)
	second, two := authority(t, 2)
	pool, err := ParseAuthorities("\n" + one + "\n\n" + two)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{first, second} {
		if _, err := c.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
			t.Error(err)
		}
	}
	third, _ := authority(t, 3)
	if _, err := third.Verify(x509.VerifyOptions{Roots: pool}); err == nil {
		t.Error("who is not named vouches")
	}
	for text, says := range map[string]string{
		"":                     "is empty",
		" \n":                  "is empty",
		"nonsense":             "no certificate in PEM",
		one + "nonsense":       "what follows certificate 1",
		one[:len(one)/2]:       "no certificate in PEM",
		one + two[:len(two)/2]: "what follows certificate 1",
		"-----BEGIN EC PRIVATE KEY-----\nMIIB\n-----END EC PRIVATE KEY-----\n" + one: "certificates alone",
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n":             "certificate 1: ",
	} {
		if _, err := ParseAuthorities(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}
