package certs

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// FuzzKept: a secret of a locker is a key and its certificate for the identity,
// or refused.
func FuzzKept(f *testing.F) {
	id, err := spiffe.New("cluster.local", "shop", "web")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, secret []byte) {
		certificate, err := decodeKept(secret, id)
		if err != nil {
			return
		}
		if got, err := spiffe.FromCertificate(certificate.Leaf); err != nil || got != id || certificate.PrivateKey == nil {
			t.Errorf("accepted for %s (%v), key %T", got, err, certificate.PrivateKey)
		}
	})
}
