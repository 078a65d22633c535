// Package revocation says which certificates are accepted from nobody any more.
//
//	list.go    List: chains of certificates -> why they are refused
//	serial.go  the one spelling of a serial number, and of an issuer's name
//
// A certificate is named by who signed it and its serial number; all certificates
// of an identity by the moment from which on they may begin. Of a chain every
// certificate counts: whoever has one below an authority that is revoked is
// refused, too.
//
// Invariants: an entry more never has more accepted; what is not of the one
// spelling makes no List, for it would match nothing.
//
// Who is revoked is the controller's decision; signatures, validity and names
// are looked at elsewhere.
package revocation

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// MaxEntries of a list, in all: far more than a mesh has certificates at a time,
// and few enough to be sent as one resource.
const MaxEntries = 64 << 10

// ErrRevoked is in the error of every certificate that is revoked.
var ErrRevoked = errors.New("revoked")

// Certificate is one that is revoked.
type Certificate struct {
	// Issuer is the [KeyID] of who signed it.
	Issuer string
	// Serial as [Serial] spells it.
	Serial string
}

// Identity is one whose older certificates are revoked.
type Identity struct {
	ID spiffe.ID
	// BegunBefore revokes those whose validity begins before it.
	BegunBefore time.Time
}

// List is what is revoked. It never changes; nil revokes nothing.
type List struct {
	certificates map[Certificate]struct{}
	identities   map[spiffe.ID]time.Time
}

// New makes a list. The error names the entry that cannot be one.
func New(certificates []Certificate, identities []Identity) (*List, error) {
	if n := len(certificates) + len(identities); n > MaxEntries {
		return nil, fmt.Errorf("%d entries, %d are possible", n, MaxEntries)
	}
	l := &List{certificates: make(map[Certificate]struct{}, len(certificates)), identities: make(map[spiffe.ID]time.Time, len(identities))}
	for i, c := range certificates {
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		l.certificates[c] = struct{}{}
	}
	for i, id := range identities {
		switch {
		case id.ID.IsZero():
			return nil, fmt.Errorf("identity %d: empty", i)
		case id.BegunBefore.Unix() <= 0:
			return nil, fmt.Errorf("identity %d: %s: a moment is needed before which its certificates began", i, id.ID)
		}
		if id.BegunBefore.After(l.identities[id.ID]) {
			l.identities[id.ID] = id.BegunBefore
		}
	}
	return l, nil
}

// Len is how many certificates and identities are revoked.
func (l *List) Len() int {
	if l == nil {
		return 0
	}
	return len(l.certificates) + len(l.identities)
}

// Begins returns the moment from which on a certificate of an identity may
// begin; the zero Time if there is no such moment.
func (l *List) Begins(id spiffe.ID) time.Time {
	if l == nil {
		return time.Time{}
	}
	return l.identities[id]
}

// Check says why a certificate is refused whose ways up to a root are the given,
// each with the certificate itself first and the root last, as
// [x509.Certificate.Verify] returns them; nil if it is not. One way with
// something revoked on it is enough: whoever shows a certificate does not get to
// choose another way around it.
func (l *List) Check(chains [][]*x509.Certificate) error {
	if l.Len() == 0 {
		return nil
	}
	for _, chain := range chains {
		if err := l.checkChain(chain); err != nil {
			return err
		}
	}
	return nil
}

func (l *List) checkChain(chain []*x509.Certificate) error {
	for i, certificate := range chain {
		issuer := chain[min(i+1, len(chain)-1)] // a root is its own
		named := Certificate{Issuer: KeyID(issuer), Serial: SerialOf(certificate)}
		if _, found := l.certificates[named]; found {
			return fmt.Errorf("certificate %s of %s is %w", named.Serial, nameOf(certificate), ErrRevoked)
		}
	}
	if len(chain) == 0 {
		return nil
	}
	id, err := spiffe.FromCertificate(chain[0])
	if err != nil {
		return nil // of no identity; whether it has to be of one is not asked here
	}
	if begins, found := l.identities[id]; found && chain[0].NotBefore.Before(begins) {
		return fmt.Errorf("certificate %s of %s is %w: it began at %s, and those before %s are",
			SerialOf(chain[0]), id, ErrRevoked, chain[0].NotBefore.UTC().Format(time.RFC3339), begins.UTC().Format(time.RFC3339))
	}
	return nil
}

func nameOf(certificate *x509.Certificate) string {
	if id, err := spiffe.FromCertificate(certificate); err == nil {
		return id.String()
	}
	return certificate.Subject.String()
}
