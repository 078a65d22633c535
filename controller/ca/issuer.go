package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

const (
	// issuerLifetime of an intermediate of ours. Its key is used at every
	// request, the root's a few times a year.
	issuerLifetime = 90 * 24 * time.Hour
	// renewAfter is the part of an intermediate's life after which its successor
	// signs, so that no leaf's life is cut short by the end of its issuer.
	renewAfter = 2.0 / 3
)

// Issuer is what leaves are signed with: a certificate of an authority and its
// key, and the way up to the root that the mesh trusts. Immutable.
type Issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	// chain goes along with each leaf: the issuer's own certificate and those
	// above it, without the root. Empty when the root itself signs.
	chain []*x509.Certificate
	root  *x509.Certificate
	// origin is where it comes from.
	origin origin
}

// origin of an issuer.
type origin string

const (
	selfManaged origin = "self-managed" // an intermediate of the root in the Secret ambit-ca
	pluggedIn   origin = "plug-in"      // from the Secret ambit-ca-plugin
)

// newIssuer makes an intermediate below a root of ours. A root from before there
// were intermediates leaves no room for one, and signs leaves itself until it is
// rotated.
func newIssuer(root *Root, trustDomain string, now time.Time) (*Issuer, error) {
	if root.cert.MaxPathLenZero {
		return &Issuer{cert: root.cert, key: root.key, root: root.cert, origin: selfManaged}, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of the intermediate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := now.Add(issuerLifetime)
	if end.After(root.cert.NotAfter) {
		end = root.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}, CommonName: "Ambit intermediate " + now.UTC().Format(time.DateOnly)},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // leaves only
	}, root.cert, key.Public(), root.key)
	if err != nil {
		return nil, fmt.Errorf("sign the intermediate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the new intermediate: %w", err)
	}
	return &Issuer{cert: cert, key: key, chain: []*x509.Certificate{cert}, root: root.cert, origin: selfManaged}, nil
}

// check says why nothing may be signed now; nil if it may.
func (i *Issuer) check(now time.Time) error {
	for _, cert := range append([]*x509.Certificate{i.cert, i.root}, i.chain...) {
		if p := checkValidity(cert, now); p != nil {
			return fmt.Errorf("%s: %s", cert.Subject, p.Detail)
		}
	}
	return nil
}

// end is when the first certificate above a leaf ends.
func (i *Issuer) end() time.Time {
	end := i.root.NotAfter
	for _, cert := range i.chain {
		if cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	return end
}

// dueForRenewal tells whether an intermediate of ours has lived long enough.
func (i *Issuer) dueForRenewal(now time.Time) bool {
	life := i.cert.NotAfter.Sub(i.cert.NotBefore)
	return len(i.chain) > 0 && now.After(i.cert.NotBefore.Add(time.Duration(renewAfter*float64(life))))
}

// PEM of what goes along with each leaf.
func (i *Issuer) chainPEM() (elements []string) {
	for _, cert := range i.chain {
		elements = append(elements, encodeCertificate(cert.Raw))
	}
	return elements
}

// equal tells whether two issuers are the same certificate below the same root.
func (i *Issuer) equal(other *Issuer) bool {
	return i != nil && other != nil && i.cert.Equal(other.cert) && i.root.Equal(other.root) && len(i.chain) == len(other.chain)
}

// fields of a Secret that keeps an issuer.
const (
	issuerCertKey   = "issuer.crt" // its certificate, and those above it, root last
	issuerKeyKey    = "issuer.key"
	issuerOriginKey = "issuer.origin"
)

func (i *Issuer) encode(into map[string][]byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return fmt.Errorf("encode key of the issuer: %w", err)
	}
	var chain bytes.Buffer
	for _, element := range i.chainPEM() {
		chain.WriteString(element)
	}
	chain.WriteString(encodeCertificate(i.root.Raw))
	into[issuerCertKey] = chain.Bytes()
	into[issuerKeyKey] = pem.EncodeToMemory(&pem.Block{Type: pkcs8Block, Bytes: der})
	into[issuerOriginKey] = []byte(i.origin)
	return nil
}

// decodeIssuer reads what encode wrote; nil where there is none. It may have
// ended: whoever signs looks at that.
func decodeIssuer(data map[string][]byte) (*Issuer, error) {
	if len(data[issuerCertKey]) == 0 {
		return nil, nil
	}
	certs, err := parseCertificates(data[issuerCertKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", issuerCertKey, err)
	}
	key, err := parseKey(data[issuerKeyKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", issuerKeyKey, err)
	}
	if !sameKey(certs[0].PublicKey, key.Public()) {
		return nil, fmt.Errorf("%s is not the key of the certificate in %s", issuerKeyKey, issuerCertKey)
	}
	for n, cert := range certs[:len(certs)-1] {
		if err := cert.CheckSignatureFrom(certs[n+1]); err != nil {
			return nil, fmt.Errorf("%s: certificate %d is not signed by the next one: %w", issuerCertKey, n+1, err)
		}
	}
	root := certs[len(certs)-1]
	if err := root.CheckSignatureFrom(root); err != nil {
		return nil, fmt.Errorf("%s: the last certificate is no root", issuerCertKey)
	}
	return &Issuer{cert: certs[0], key: key, chain: certs[:len(certs)-1], root: root, origin: origin(data[issuerOriginKey])}, nil
}

func sameKey(a, b crypto.PublicKey) bool {
	public, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(b)
}

// parseCertificates reads one certificate after the other, at least one, and
// nothing else.
func parseCertificates(data []byte) (certs []*x509.Certificate, err error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("the field is missing or empty")
	}
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("there is no PEM block after certificate %d", len(certs))
		}
		if block.Type != certificateBlock {
			return nil, fmt.Errorf("PEM block %d is a %q, not a %s", len(certs)+1, block.Type, certificateBlock)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// Fingerprint names a certificate: SHA-256 of all of it.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}
