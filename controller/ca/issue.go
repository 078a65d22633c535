package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// maxLifetime of a workload's certificate. A stolen key is worth that long,
// since there is no revocation; renewed at half-life, the controller may be
// away for half of it.
const maxLifetime = 24 * time.Hour

// AuthorityConfig is what an [Authority] needs.
type AuthorityConfig struct {
	Root *Root
	// TrustDomain of every identity that is signed.
	TrustDomain string
	// SystemNamespace is where the controller's Service is.
	SystemNamespace string
	// Now is the clock, time.Now when nil.
	Now    func() time.Time
	Logger *slog.Logger
}

// Authority signs with the root.
type Authority struct {
	cfg AuthorityConfig

	mu      sync.Mutex
	serving *servingCertificate // guarded by mu; nil until first asked for
}

// NewAuthority returns the authority of a root.
func NewAuthority(cfg AuthorityConfig) *Authority {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authority{cfg: cfg}
}

// Roots returns the roots that peers' certificates chain to, in PEM.
func (a *Authority) Roots() []string { return []string{a.cfg.Root.PEM()} }

// TrustDomain returns the trust domain of every identity that is signed.
func (a *Authority) TrustDomain() string { return a.cfg.TrustDomain }

// Issue signs a certificate for an identity that the caller was found entitled
// to. The chain is in PEM: the leaf, then all roots in one element. A lifetime
// of zero or below means the longest.
func (a *Authority) Issue(identity spiffe.ID, csrPEM string, lifetime time.Duration) (chain []string, leaf *x509.Certificate, err error) {
	public, err := parseRequest(csrPEM, identity)
	if err != nil {
		return nil, nil, err
	}
	name, err := url.Parse(identity.String())
	if err != nil {
		return nil, nil, fmt.Errorf("write identity %s as a URI: %w", identity, err)
	}
	leaf, err = a.sign(&x509.Certificate{
		URIs:        []*url.URL{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, public, lifetime)
	if err != nil {
		return nil, nil, err
	}
	return []string{encodeCertificate(leaf.Raw), a.cfg.Root.PEM()}, leaf, nil
}

// sign completes a leaf's template and signs it.
func (a *Authority) sign(template *x509.Certificate, public crypto.PublicKey, lifetime time.Duration) (*x509.Certificate, error) {
	now := a.cfg.Now()
	root := a.cfg.Root
	if p := checkValidity(root.cert, now); p != nil {
		return nil, errors.New("the root: " + p.Detail)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(capLifetime(lifetime))
	if template.NotAfter.After(root.cert.NotAfter) {
		template.NotAfter = root.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, public, root.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the signed certificate: %w", err)
	}
	return cert, nil
}

func capLifetime(asked time.Duration) time.Duration {
	if asked <= 0 || asked > maxLifetime {
		return maxLifetime
	}
	return asked
}

func encodeCertificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}))
}
