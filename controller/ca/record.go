package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// recordPrefix is what every signed record begins with, so that none can be taken for a
// certificate, a request or a list: these are DER, and begin with another byte.
const recordPrefix = "ambit record\n"

// SignRecord signs what a leader leaves to the next one outside of Secrets, under a name
// that tells it from other records.
func (a *Authority) SignRecord(name string, text []byte) (signature []byte, err error) {
	issuer, _, err := a.current()
	if err != nil {
		return nil, err
	}
	message := signedRecord(name, text)
	if _, ok := issuer.key.Public().(ed25519.PublicKey); ok {
		signature, err = issuer.key.Sign(rand.Reader, message, crypto.Hash(0))
	} else {
		digest := sha256.Sum256(message)
		signature, err = issuer.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("sign record %s: %w", name, err)
	}
	return signature, nil
}

// CheckRecord is an error unless the issuer of now has signed that. What one before it
// signed counts for nothing any more.
func (a *Authority) CheckRecord(name string, text, signature []byte) error {
	issuer, _, err := a.current()
	if err != nil {
		return err
	}
	algorithm, ok := recordAlgorithm(issuer.key.Public())
	if !ok {
		return errors.New("the issuer's key is of a kind that signs no records")
	}
	if err := issuer.cert.CheckSignature(algorithm, signedRecord(name, text), signature); err != nil {
		return fmt.Errorf("check record %s: %w", name, err)
	}
	return nil
}

func signedRecord(name string, text []byte) []byte {
	return fmt.Appendf(nil, "%s%q\n%s", recordPrefix, name, text)
}

func recordAlgorithm(key crypto.PublicKey) (algorithm x509.SignatureAlgorithm, ok bool) {
	switch key.(type) {
	case *ecdsa.PublicKey:
		return x509.ECDSAWithSHA256, true
	case *rsa.PublicKey:
		return x509.SHA256WithRSA, true
	case ed25519.PublicKey:
		return x509.PureEd25519, true
	}
	return x509.UnknownSignatureAlgorithm, false
}
