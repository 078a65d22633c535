package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

const (
	requestBlock = "CERTIFICATE REQUEST"
	// maxRequestBytes: a request with an RSA 4096 key is under 2 KiB.
	maxRequestBytes = 16 << 10
	// minRSABits and maxRSABits: below is breakable, above costs us seconds to verify.
	minRSABits = 2048
	maxRSABits = 8192
)

// requestError is a signing request that nobody could sign.
type requestError struct{ reason error }

func (e *requestError) Error() string { return "signing request: " + e.reason.Error() }
func (e *requestError) Unwrap() error { return e.reason }

var (
	// errForeignName: the request names somebody else than who was authorised.
	errForeignName = errors.New("the request asks for another name")
	// errLargeRequest: it is not read.
	errLargeRequest = errors.New("the request is too large")
	// errUnfitKey: nobody should rely on it.
	errUnfitKey = errors.New("the key is not fit")
)

// parseRequest returns the public key of a signing request for an identity.
// The request is not trusted for anything else; what it asks for must still be
// what it gets, so that nobody believes to have been given another name: exactly
// one URI, the identity's.
//
// The error is a *requestError, and one of those above if that is the reason.
func parseRequest(csrPEM string, identity spiffe.ID) (crypto.PublicKey, error) {
	key, err := readRequest(csrPEM, identity)
	if err != nil {
		return nil, &requestError{reason: err}
	}
	return key, nil
}

func readRequest(csrPEM string, identity spiffe.ID) (crypto.PublicKey, error) {
	if len(csrPEM) > maxRequestBytes {
		return nil, fmt.Errorf("%w: %d bytes, %d are possible", errLargeRequest, len(csrPEM), maxRequestBytes)
	}
	block, err := onlyBlock([]byte(csrPEM), requestBlock)
	if err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse request: %w", err)
	}
	// The key is judged before it is used: verifying with a huge one is slow.
	if err := checkPublicKey(request.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnfitKey, err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the requester does not have the key: %w", err)
	}
	switch named, err := spiffe.FromRequest(request); {
	case errors.Is(err, spiffe.ErrManyNames):
		return nil, fmt.Errorf("%w: %w", errForeignName, err)
	case err != nil:
		return nil, err
	case named != identity:
		return nil, fmt.Errorf("%w: %s", errForeignName, named)
	}
	return request.PublicKey, nil
}

func checkPublicKey(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		// P-224 is the only curve of crypto/elliptic below 128 bits of security.
		if key.Curve == elliptic.P224() {
			return errors.New("the key's curve is weaker than P-256")
		}
		return nil
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("the RSA key has %d bits, not %d to %d", bits, minRSABits, maxRSABits)
		}
		return nil
	default:
		return fmt.Errorf("keys of type %T are not supported", key)
	}
}
