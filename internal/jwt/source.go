package jwt

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Source is where an issuer's keys are published. It can be compared: what is published
// by the word of other authorities is something else.
type Source struct {
	URI string
	// CertificateAuthority is the certificates, PEM, of those that alone may vouch for
	// the URI's host; empty for the public authorities.
	CertificateAuthority string
}

// ParseAuthorities reads certificates in PEM, one at least, and nothing else.
func ParseAuthorities(text string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	rest := []byte(strings.TrimSpace(text))
	for n := 1; len(rest) > 0; n++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && n == 1:
			return nil, errors.New("is no certificate in PEM")
		case block == nil:
			return nil, fmt.Errorf("what follows certificate %d is no PEM", n-1)
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("block %d is %q, want certificates alone", n, block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		pool.AddCert(certificate)
		rest = []byte(strings.TrimSpace(string(rest)))
	}
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("is empty")
	}
	return pool, nil
}
