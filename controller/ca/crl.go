package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/revocation"
)

// PluginCRLKey is the field of the Secret [PluginSecretName] with the revocation
// lists of its authorities: X.509 CRLs in PEM, one for each at most. It may be
// missing.
const PluginCRLKey = "crl.pem"

const (
	crlBlock = "X509 CRL"
	// crlSkew is how far ahead of ours an authority's clock may be.
	crlSkew = 5 * time.Minute
)

// Extensions of RFC 5280 section 5.2 with which a list is not all that its
// authority has revoked, or not only its own.
var (
	oidDeltaCRL                 = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidCertificateIssuer        = asn1.ObjectIdentifier{2, 5, 29, 29}
	oidAuthorityKeyID           = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLNumber                = asn1.ObjectIdentifier{2, 5, 29, 20}
)

// parseCRLs reads one list after the other, each of one of the authorities.
func parseCRLs(data []byte, authorities []*x509.Certificate, now time.Time) ([]AcceptedCRL, error) {
	var all []AcceptedCRL
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		n := len(all) + 1
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("there is no PEM block where list %d should begin; `openssl crl -inform DER -outform PEM` makes one", n)
		}
		if block.Type != crlBlock {
			return nil, fmt.Errorf("PEM block %d is a %q, not an %s", n, block.Type, crlBlock)
		}
		crl, err := parseCRL(block.Bytes, authorities, now)
		if err != nil {
			return nil, fmt.Errorf("list %d: %w", n, err)
		}
		if slices.ContainsFunc(all, func(other AcceptedCRL) bool { return other.Issuer == crl.Issuer }) {
			return nil, fmt.Errorf("list %d: there is another one of %q before it: leave the newer one", n, crl.Subject)
		}
		all = append(all, crl)
	}
	if len(all) == 0 {
		return nil, errors.New("the field is empty: remove it, or put a list without entries into it")
	}
	return all, nil
}

func parseCRL(der []byte, authorities []*x509.Certificate, now time.Time) (AcceptedCRL, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return AcceptedCRL{}, fmt.Errorf("it cannot be read as an X.509 CRL: %w", err)
	}
	authority, err := crlAuthority(list, authorities)
	if err != nil {
		return AcceptedCRL{}, err
	}
	for _, extension := range list.Extensions {
		switch {
		case extension.Id.Equal(oidDeltaCRL):
			return AcceptedCRL{}, errors.New("it is a delta CRL, which says only what has changed: put the full one")
		case extension.Id.Equal(oidIssuingDistributionPoint):
			return AcceptedCRL{}, errors.New("it is for one distribution point only (issuingDistributionPoint): put one for all certificates of its authority")
		case extension.Critical && !extension.Id.Equal(oidAuthorityKeyID) && !extension.Id.Equal(oidCRLNumber):
			return AcceptedCRL{}, fmt.Errorf("its critical extension %s is not known", extension.Id)
		}
	}
	switch {
	case list.ThisUpdate.After(now.Add(crlSkew)):
		return AcceptedCRL{}, fmt.Errorf("it begins only at %s (thisUpdate): look at the clocks of its authority and of the controller", list.ThisUpdate.UTC().Format(time.RFC3339))
	case list.NextUpdate.IsZero():
		return AcceptedCRL{}, errors.New("it does not say until when it is good (nextUpdate)")
	case now.After(list.NextUpdate):
		return AcceptedCRL{}, fmt.Errorf("it was good until %s (nextUpdate): put a newer one", list.NextUpdate.UTC().Format(time.RFC3339))
	}
	accepted := AcceptedCRL{
		Issuer: revocation.KeyID(authority), Subject: authority.Subject.String(),
		ThisUpdate: list.ThisUpdate.UTC(), NextUpdate: list.NextUpdate.UTC(), Expires: authority.NotAfter.UTC(), Serials: []string{},
	}
	if list.Number != nil {
		accepted.Number = list.Number.Text(16)
	}
	for i, entry := range list.RevokedCertificateEntries {
		for _, extension := range entry.Extensions {
			if extension.Id.Equal(oidCertificateIssuer) {
				return AcceptedCRL{}, fmt.Errorf("entry %d is of another issuer's certificate (an indirect CRL): put one of each authority", i+1)
			}
		}
		serial, err := revocation.Serial(entry.SerialNumber.Text(16))
		if err != nil {
			return AcceptedCRL{}, fmt.Errorf("entry %d: %w", i+1, err)
		}
		accepted.Serials = append(accepted.Serials, serial)
	}
	slices.Sort(accepted.Serials)
	accepted.Serials = slices.Compact(accepted.Serials)
	return accepted, nil
}

// crlAuthority finds who signed a list.
func crlAuthority(list *x509.RevocationList, authorities []*x509.Certificate) (*x509.Certificate, error) {
	var names []string
	var named error
	for _, authority := range authorities {
		names = append(names, fmt.Sprintf("%q", authority.Subject))
		if !bytes.Equal(authority.RawSubject, list.RawIssuer) {
			continue
		}
		switch err := list.CheckSignatureFrom(authority); {
		case err == nil:
			return authority, nil
		case authority.KeyUsage != 0 && authority.KeyUsage&x509.KeyUsageCRLSign == 0:
			named = fmt.Errorf("the certificate of %q may not sign revocation lists: its key usage lacks cRLSign", authority.Subject)
		default:
			named = fmt.Errorf("it says that %q signed it, and the signature is not by that key: %w", authority.Subject, err)
		}
	}
	if named != nil {
		return nil, named
	}
	return nil, fmt.Errorf("it is signed by %q, which is none of the authorities in %s: %s", list.Issuer, PluginSecretName, strings.Join(names, ", "))
}

// takeCRLs replaces the lists of before by those of the plug-in, each by its
// authority: what is not there stays, and none is replaced by an older one.
func (r Revoked) takeCRLs(lists []AcceptedCRL, signing *Issuer) (Revoked, error) {
	next := slices.Clone(r.CRLs)
	for _, list := range lists {
		at := slices.IndexFunc(next, func(other AcceptedCRL) bool { return other.Issuer == list.Issuer })
		switch {
		case at < 0:
			next = append(next, list)
		case list.ThisUpdate.Before(next[at].ThisUpdate):
			return r, fmt.Errorf("the list of %q is of %s, older than the one in force, of %s: put a newer one",
				list.Subject, list.ThisUpdate.Format(time.RFC3339), next[at].ThisUpdate.Format(time.RFC3339))
		default:
			next[at] = list
		}
	}
	taken := r
	taken.CRLs = next
	if err := taken.fits(); err != nil {
		return r, fmt.Errorf("%w: leave out of the list what has ended", err)
	}
	list, err := taken.list()
	if err != nil {
		return r, err
	}
	if err := list.Check([][]*x509.Certificate{signing.way()}); err != nil {
		return r, fmt.Errorf("it revokes what signs for the mesh now (%w): put another signing certificate into the Secret first", err)
	}
	return taken, nil
}

// way from the signing certificate to the root.
func (i *Issuer) way() []*x509.Certificate { return append(slices.Clone(i.chain), i.root) }
