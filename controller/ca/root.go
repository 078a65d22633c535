package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// rootLifetime is long: whoever trusts the root from outside of the mesh is
	// not told of its successor.
	rootLifetime = 10 * 365 * 24 * time.Hour
	// Backdate is how far in the past certificates begin: the clocks of nodes
	// may differ by that much.
	Backdate = 2 * time.Minute
	// serialBits: RFC 5280 section 4.1.2.2 allows 20 octets; 128 random bits do not collide.
	serialBits = 128
)

const (
	certificateBlock = "CERTIFICATE"
	pkcs8Block       = "PRIVATE KEY"
	ecBlock          = "EC PRIVATE KEY"
	rsaBlock         = "RSA PRIVATE KEY"
)

// Root is the self-signed certificate that every identity of the mesh chains
// to, with its key. Immutable.
type Root struct {
	cert *x509.Certificate
	key  crypto.Signer
	// certPEM and keyPEM are the stored bytes, to put back as they were.
	certPEM, keyPEM []byte
}

// Certificate returns the root's certificate.
func (r *Root) Certificate() *x509.Certificate { return r.cert }

// PEM returns the root's certificate in PEM.
func (r *Root) PEM() string { return string(r.certPEM) }

// fields of the Secret.
func (r *Root) fields() map[string][]byte {
	return map[string][]byte{corev1.TLSCertKey: r.certPEM, corev1.TLSPrivateKeyKey: r.keyPEM}
}

// newRoot makes a root for a trust domain.
func newRoot(trustDomain string, now time.Time) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate root key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}, CommonName: "Ambit root"},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		// It signs intermediates, and those sign leaves.
		MaxPathLen: 1,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode root key: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the new root certificate: %w", err)
	}
	return &Root{
		cert:    cert,
		key:     key,
		certPEM: pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: pkcs8Block, Bytes: keyDER}),
	}, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return serial, nil
}

// parseRoot reads a root from the fields of a Secret. The error is a *Problem
// without its object and fix.
func parseRoot(data map[string][]byte, now time.Time) (*Root, *Problem) {
	cert, err := parseRootCertificate(data[corev1.TLSCertKey])
	if err != nil {
		return nil, &Problem{Code: RootMalformed, Field: corev1.TLSCertKey, Detail: err.Error()}
	}
	key, err := parseKey(data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, &Problem{Code: RootMalformed, Field: corev1.TLSPrivateKeyKey, Detail: err.Error()}
	}
	if !sameKey(cert.PublicKey, key.Public()) {
		return nil, &Problem{Code: RootKeyMismatch, Field: corev1.TLSPrivateKeyKey, Detail: "the key is not that of the certificate in " + corev1.TLSCertKey}
	}
	if p := checkValidity(cert, now); p != nil {
		return nil, p
	}
	return &Root{cert: cert, key: key, certPEM: data[corev1.TLSCertKey], keyPEM: data[corev1.TLSPrivateKeyKey]}, nil
}

func checkValidity(cert *x509.Certificate, now time.Time) *Problem {
	switch {
	case now.After(cert.NotAfter):
		return &Problem{Code: RootExpired, Field: corev1.TLSCertKey, Detail: "the certificate expired on " + cert.NotAfter.Format(time.RFC3339)}
	case now.Before(cert.NotBefore):
		return &Problem{Code: RootExpired, Field: corev1.TLSCertKey, Detail: "the certificate is not valid before " + cert.NotBefore.Format(time.RFC3339)}
	}
	return nil
}

func parseRootCertificate(data []byte) (*x509.Certificate, error) {
	block, err := onlyBlock(data, certificateBlock)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, errors.New("the certificate is not a certificate authority's")
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return nil, errors.New("the certificate is not self-signed: only a root is accepted here")
	}
	return cert, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, err := onlyBlock(data, pkcs8Block, ecBlock, rsaBlock)
	if err == nil && strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
		err = errors.New("the key is encrypted, and nobody is there to tell the password")
	}
	if err != nil {
		return nil, err
	}
	var key any
	switch block.Type {
	case pkcs8Block:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case ecBlock:
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case rsaBlock:
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	if err != nil {
		// The parser's error is left out: it may quote the key.
		return nil, errors.New("the key does not parse")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	return signer, nil
}

// onlyBlock reads data that holds one PEM block of the given types and nothing else.
func onlyBlock(data []byte, types ...string) (*pem.Block, error) {
	if len(data) == 0 {
		return nil, errors.New("the field is missing or empty")
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, errors.New("there is no PEM block")
	}
	if len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("there is more than one PEM block, or something behind it")
	}
	for _, t := range types {
		if block.Type == t {
			return block, nil
		}
	}
	return nil, fmt.Errorf("the PEM block is a %q, not a %s", block.Type, strings.Join(types, " or "))
}
