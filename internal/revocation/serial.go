package revocation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// maxSerialDigits: a serial number has 20 octets at most (RFC 5280 section 4.1.2.2).
const maxSerialDigits = 40

// Serial reads a serial number as people and tools write it, in hex: with or
// without `0x`, colons between octets, capitals, leading zeros. It returns the
// one spelling: lower case, nothing but digits, no leading zeros.
func Serial(text string) (string, error) {
	digits := strings.ToLower(strings.TrimSpace(text))
	digits = strings.TrimPrefix(digits, "0x")
	if octets := strings.Split(digits, ":"); len(octets) > 1 {
		for _, octet := range octets {
			if len(octet) != 2 {
				return "", fmt.Errorf("serial number %q: between colons there are two digits each", text)
			}
		}
		digits = strings.Join(octets, "")
	}
	digits = strings.TrimLeft(digits, "0")
	if err := checkSerial(digits); err != nil {
		return "", fmt.Errorf("serial number %q: %w", text, err)
	}
	return digits, nil
}

// SerialOf spells the serial number of a certificate.
func SerialOf(certificate *x509.Certificate) string { return certificate.SerialNumber.Text(16) }

// KeyID names whoever signs with a certificate's key: SHA-256 of the public key
// (SubjectPublicKeyInfo), in hex. Unlike a certificate's own key identifiers it is
// always there, and nobody chooses it.
func KeyID(issuer *x509.Certificate) string {
	sum := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func (c Certificate) check() error {
	if len(c.Issuer) != 2*sha256.Size || !isHex(c.Issuer) {
		return fmt.Errorf("issuer %q: %d hex digits in lower case are needed", c.Issuer, 2*sha256.Size)
	}
	if err := checkSerial(c.Serial); err != nil {
		return fmt.Errorf("serial number %q: %w", c.Serial, err)
	}
	return nil
}

func checkSerial(digits string) error {
	switch {
	case digits == "":
		return errors.New("a positive number is needed")
	case len(digits) > maxSerialDigits:
		return fmt.Errorf("%d hex digits, %d are possible", len(digits), maxSerialDigits)
	case !isHex(digits):
		return errors.New("only hex digits are possible")
	case digits[0] == '0':
		return errors.New("it has leading zeros")
	}
	return nil
}

func isHex(text string) bool {
	for _, c := range []byte(text) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
