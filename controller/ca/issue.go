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
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// maxLifetime of a workload's certificate. A stolen key that nobody misses is worth
// that long, and one that is revoked no longer than data planes take to hear of it;
// renewed at two thirds of it, the controller may be away for a third of it.
const maxLifetime = 24 * time.Hour

// AuthorityConfig is what an [Authority] needs.
type AuthorityConfig struct {
	// TrustDomain of every identity that is signed.
	TrustDomain string
	// SystemNamespace is where the controller's Service is.
	SystemNamespace string
	// Now is the clock, time.Now when nil.
	Now    func() time.Time
	Logger *slog.Logger
}

// Authority signs with the issuer that it was last told to use.
type Authority struct {
	cfg AuthorityConfig

	mu      sync.Mutex          // guards the rest
	issuer  *Issuer             // nil before Use
	bundle  Bundle              // of the mesh
	revoked *revocation.List    // nil before anything is known of it
	serving *servingCertificate // nil until first asked for
}

// NewAuthority returns the authority of a root.
func NewAuthority(cfg AuthorityConfig) *Authority {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authority{cfg: cfg}
}

// Bundle is the roots of the mesh as data planes get them.
type Bundle struct {
	// Roots that peers' certificates chain to, in PEM.
	Roots []string
	// Retiring are the fingerprints of those that sign no more: whoever has a
	// certificate below one asks for another.
	Retiring []string
}

// Use has everything from now on signed by an issuer. The bundle is what peers
// trust; the issuer chains to one of its roots.
func (a *Authority) Use(issuer *Issuer, bundle Bundle) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.issuer != issuer {
		a.serving = nil // made anew, with the issuer's own chain
	}
	a.issuer, a.bundle = issuer, bundle
}

// Bundle returns what data planes are to trust.
func (a *Authority) Bundle() Bundle {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle
}

// revoke has what is revoked decide on what is signed from now on.
func (a *Authority) revoke(list *revocation.List) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = list
}

// revocations is what is revoked, as far as it is known.
func (a *Authority) revocations() *revocation.List {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.revoked
}

// current returns what is signed with now.
func (a *Authority) current() (*Issuer, []string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.issuer == nil {
		return nil, nil, errNoIssuer
	}
	return a.issuer, a.bundle.Roots, nil
}

var errNoIssuer = errors.New("there is nothing to sign with yet")

// TrustDomain returns the trust domain of every identity that is signed.
func (a *Authority) TrustDomain() string { return a.cfg.TrustDomain }

// Issue signs a certificate for an identity that the caller was found entitled
// to. The chain is in PEM: the leaf, the intermediates, then all roots in one
// element. A lifetime of zero or below means the longest.
func (a *Authority) Issue(identity spiffe.ID, csrPEM string, lifetime time.Duration) (chain []string, leaf *x509.Certificate, err error) {
	public, err := parseRequest(csrPEM, identity)
	if err != nil {
		return nil, nil, err
	}
	issuer, roots, err := a.current()
	if err != nil {
		return nil, nil, err
	}
	leaf, err = issuer.sign(&x509.Certificate{
		URIs:        []*url.URL{identity.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   a.revocations().Begins(identity), // what begins sooner is revoked
	}, public, lifetime, a.cfg.Now())
	if err != nil {
		return nil, nil, err
	}
	chain = append([]string{encodeCertificate(leaf.Raw)}, issuer.chainPEM()...)
	return append(chain, strings.Join(roots, "")), leaf, nil
}

// sign completes a leaf's template and signs it. Its beginning, if it says one, is
// the earliest.
func (i *Issuer) sign(template *x509.Certificate, public crypto.PublicKey, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	if err := i.check(now); err != nil {
		return nil, fmt.Errorf("the issuer: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	if begins := now.Add(-Backdate); template.NotBefore.Before(begins) {
		template.NotBefore = begins
	}
	template.NotAfter = now.Add(capLifetime(lifetime))
	if end := i.end(); template.NotAfter.After(end) {
		template.NotAfter = end
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, public, i.key)
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
