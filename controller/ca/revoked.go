package ca

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Revoked is what is revoked, and what it takes to revoke more: the contents of
// the ConfigMap [RevokedConfigMapName]. It is a value.
type Revoked struct {
	// Version counts the changes.
	Version int `json:"version"`
	// Entries that were asked for.
	Entries []RevokedEntry `json:"entries"`
	// CRLs are the lists that were accepted from the plug-in, by who signed them.
	CRLs []AcceptedCRL `json:"crls,omitempty"`
	// Issuers are those that signed what may still be about.
	Issuers []KnownIssuer `json:"issuers"`
	// Outcomes of the last requests, the newest last.
	Outcomes []RevokeOutcome `json:"outcomes,omitempty"`
}

// RevokedEntry is a certificate, named by its issuer and serial number, or an
// identity with the moment before which its certificates began.
type RevokedEntry struct {
	Issuer      string    `json:"issuer,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	Identity    string    `json:"identity,omitempty"`
	BegunBefore time.Time `json:"begunBefore,omitzero"`
	Revoked     time.Time `json:"revoked"`
	// Expires is when the last certificate that is meant has ended.
	Expires time.Time `json:"expires"`
	Note    string    `json:"note,omitempty"`
}

// AcceptedCRL is a list of an authority that is plugged in.
type AcceptedCRL struct {
	// Issuer is the authority's [revocation.KeyID].
	Issuer     string    `json:"issuer"`
	Subject    string    `json:"subject"`
	Number     string    `json:"number,omitempty"`
	ThisUpdate time.Time `json:"thisUpdate"`
	NextUpdate time.Time `json:"nextUpdate"`
	// Expires is when the authority's certificate ends, and all below it with it.
	Expires time.Time `json:"expires"`
	Serials []string  `json:"serials"`
}

// KnownIssuer is an authority of the mesh, of now or of before.
type KnownIssuer struct {
	Key     string `json:"key"` // its revocation.KeyID
	Subject string `json:"subject"`
	Serial  string `json:"serial"`
	// Parent is the KeyID of who signed it; its own for a root.
	Parent   string    `json:"parent"`
	NotAfter time.Time `json:"notAfter"`
	// Leaves tells that it signs, or signed, workloads' certificates.
	Leaves bool `json:"leaves,omitempty"`
}

// RevokeRequest asks for a revocation: of a certificate by its serial number, with
// or without its issuer's key id, or of an identity.
type RevokeRequest struct {
	Serial   string `json:"serial,omitempty"`
	Issuer   string `json:"issuer,omitempty"`
	Identity string `json:"identity,omitempty"`
	Note     string `json:"note,omitempty"`
}

// RevokeOutcome is what became of a request.
type RevokeOutcome struct {
	Request string `json:"request"`
	// Refused says why; empty if it was done.
	Refused string    `json:"refused,omitempty"`
	At      time.Time `json:"at"`
}

const (
	// maxOutcomes are remembered for those who asked.
	maxOutcomes = 32
	// maxListBytes of a list, some 3,000 entries or 15,000 certificates in CRLs: a
	// ConfigMap holds 1 MiB, of which requests and their outcomes need some.
	maxListBytes = 900 << 10
	// maxNoteBytes of somebody's words on a revocation.
	maxNoteBytes = 256
)

func decodeRevoked(text string) (Revoked, error) {
	var r Revoked
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return Revoked{}, err
	}
	if r.Version < 1 {
		return Revoked{}, fmt.Errorf("version is %d, it begins with 1", r.Version)
	}
	_, err := r.list()
	return r, err
}

// list is what peers are judged by.
func (r Revoked) list() (*revocation.List, error) {
	var certificates []revocation.Certificate
	var identities []revocation.Identity
	for i, e := range r.Entries {
		if e.Identity == "" {
			certificates = append(certificates, revocation.Certificate{Issuer: e.Issuer, Serial: e.Serial})
			continue
		}
		id, err := spiffe.Parse(e.Identity)
		if err != nil {
			return nil, fmt.Errorf("entries[%d].identity: %w", i, err)
		}
		identities = append(identities, revocation.Identity{ID: id, BegunBefore: e.BegunBefore})
	}
	for _, crl := range r.CRLs {
		for _, serial := range crl.Serials {
			certificates = append(certificates, revocation.Certificate{Issuer: crl.Issuer, Serial: serial})
		}
	}
	return revocation.New(certificates, identities)
}

// message is what data planes are sent; the same for the same contents.
func (r Revoked) message(trustDomain string) *meshapi.RevocationList {
	byIssuer := map[string]map[string]bool{}
	add := func(issuer, serial string) {
		if byIssuer[issuer] == nil {
			byIssuer[issuer] = map[string]bool{}
		}
		byIssuer[issuer][serial] = true
	}
	m := &meshapi.RevocationList{TrustDomain: trustDomain}
	for _, e := range r.Entries {
		if e.Identity == "" {
			add(e.Issuer, e.Serial)
		} else {
			m.Identities = append(m.Identities, &meshapi.RevokedIdentity{Identity: e.Identity, BegunBefore: e.BegunBefore.Unix()})
		}
	}
	for _, crl := range r.CRLs {
		for _, serial := range crl.Serials {
			add(crl.Issuer, serial)
		}
	}
	for _, issuer := range sortedKeys(byIssuer) {
		m.Certificates = append(m.Certificates, &meshapi.RevokedCertificates{Issuer: issuer, Serials: sortedKeys(byIssuer[issuer])})
	}
	slices.SortFunc(m.Identities, func(a, b *meshapi.RevokedIdentity) int { return cmp.Compare(a.Identity, b.Identity) })
	return m
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// count is how many certificates and identities are revoked.
func (r Revoked) count() int {
	n := len(r.Entries)
	for _, crl := range r.CRLs {
		n += len(crl.Serials)
	}
	return n
}

// expire drops what is about certificates that have ended.
func (r Revoked) expire(now time.Time) Revoked {
	ended := func(at time.Time) bool { return !now.Before(at) }
	r.Entries = slices.DeleteFunc(slices.Clone(r.Entries), func(e RevokedEntry) bool { return ended(e.Expires) })
	r.CRLs = slices.DeleteFunc(slices.Clone(r.CRLs), func(c AcceptedCRL) bool { return ended(c.Expires) })
	r.Issuers = slices.DeleteFunc(slices.Clone(r.Issuers), func(i KnownIssuer) bool { return ended(i.NotAfter) })
	return r
}

// know remembers the authorities of an issuer.
func (r Revoked) know(issuer *Issuer) Revoked {
	above := append(slices.Clone(issuer.chain), issuer.root)
	for i, cert := range above {
		key := revocation.KeyID(cert)
		serial := revocation.SerialOf(cert)
		if slices.ContainsFunc(r.Issuers, func(k KnownIssuer) bool { return k.Key == key && k.Serial == serial && (k.Leaves || i > 0) }) {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(r.Issuers), func(k KnownIssuer) bool { return k.Key == key && k.Serial == serial })
		r.Issuers = append(kept, KnownIssuer{
			Key: key, Subject: cert.Subject.String(), Serial: serial,
			Parent: revocation.KeyID(above[min(i+1, len(above)-1)]), NotAfter: cert.NotAfter.UTC(), Leaves: i == 0,
		})
	}
	return r
}

// revoke does what a request asks for. The error is for who asked: it says what
// is wrong and what to do.
func (r Revoked) revoke(ask RevokeRequest, trustDomain string, signing *Issuer, now time.Time) (Revoked, error) {
	switch {
	case len(ask.Note) > maxNoteBytes:
		return r, fmt.Errorf("note: %d bytes, %d are possible", len(ask.Note), maxNoteBytes)
	case (ask.Serial == "") == (ask.Identity == ""):
		return r, fmt.Errorf("either a serial number or an identity is needed")
	case ask.Identity != "":
		return r.revokeIdentity(ask, trustDomain, now)
	}
	return r.revokeSerial(ask, signing, now)
}

// revokeIdentity: what this authority issued up to now began before a moment, and
// what it issues from now on begins no sooner; see [Authority.Issue].
func (r Revoked) revokeIdentity(ask RevokeRequest, trustDomain string, now time.Time) (Revoked, error) {
	id, err := spiffe.Parse(ask.Identity)
	switch {
	case err != nil:
		return r, fmt.Errorf("identity: %w", err)
	case id.TrustDomain != trustDomain:
		return r, fmt.Errorf("identity: %s is of another trust domain than the mesh, which is %s", id, trustDomain)
	}
	begun := now.Truncate(time.Second).Add(time.Second - Backdate).UTC()
	r.Entries = slices.DeleteFunc(slices.Clone(r.Entries), func(e RevokedEntry) bool {
		if e.Identity != id.String() {
			return false
		}
		if !e.BegunBefore.Before(begun) { // revoked again within a second
			begun = e.BegunBefore.Add(time.Second)
		}
		return true
	})
	return r.add(RevokedEntry{Identity: id.String(), BegunBefore: begun, Revoked: now.UTC(), Expires: now.Add(retireAfter).UTC(), Note: ask.Note})
}

func (r Revoked) revokeSerial(ask RevokeRequest, signing *Issuer, now time.Time) (Revoked, error) {
	serial, err := revocation.Serial(ask.Serial)
	if err != nil {
		return r, err
	}
	for _, cert := range append([]*x509.Certificate{signing.cert, signing.root}, signing.chain...) {
		if revocation.SerialOf(cert) == serial {
			return r, fmt.Errorf("serial number %s is that of %q, below which everything is signed now: "+
				"have another one sign first (`ambit ca rotate`, or another issuer in %s), then revoke it", serial, cert.Subject, PluginSecretName)
		}
	}
	var found []KnownIssuer
	for _, known := range r.Issuers {
		if known.Serial == serial && (ask.Issuer == "" || ask.Issuer == known.Parent) {
			// An authority of ours of before.
			return r.add(RevokedEntry{Issuer: known.Parent, Serial: serial, Revoked: now.UTC(), Expires: known.NotAfter, Note: ask.Note})
		}
		if known.Key == ask.Issuer || ask.Issuer == "" && known.Leaves {
			found = append(found, known)
		}
	}
	if len(found) == 0 {
		return r, fmt.Errorf("issuer %q is not known: it is one of %s", ask.Issuer, r.issuerKeys())
	}
	for _, issuer := range found {
		expires := issuer.NotAfter
		if issuer.Leaves && now.Add(retireAfter).Before(expires) {
			expires = now.Add(retireAfter).UTC() // no workload's certificate of before now lives longer
		}
		if r, err = r.add(RevokedEntry{Issuer: issuer.Key, Serial: serial, Revoked: now.UTC(), Expires: expires, Note: ask.Note}); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r Revoked) issuerKeys() string {
	var all []string
	for _, known := range r.Issuers {
		all = append(all, fmt.Sprintf("%s (%s)", known.Key, known.Subject))
	}
	return strings.Join(all, ", ")
}

// add an entry, or the same one for longer.
func (r Revoked) add(entry RevokedEntry) (Revoked, error) {
	at := slices.IndexFunc(r.Entries, func(e RevokedEntry) bool {
		return e.Issuer == entry.Issuer && e.Serial == entry.Serial && e.Identity == entry.Identity
	})
	if at >= 0 {
		r.Entries = slices.Clone(r.Entries)
		if entry.Expires.After(r.Entries[at].Expires) {
			r.Entries[at].Expires = entry.Expires
		}
		return r, nil
	}
	next := r
	next.Entries = append(slices.Clone(r.Entries), entry)
	if err := next.fits(); err != nil {
		return r, fmt.Errorf("%w: revoke an identity instead of its certificates, or have another issuer sign and revoke the one of before (`ambit ca rotate --intermediate`)", err)
	}
	return next, nil
}

// encode makes the text that is kept.
func (r Revoked) encode() (string, error) {
	text, err := json.MarshalIndent(r, "", " ")
	return string(text), err
}

// fits says why a list is too large.
func (r Revoked) fits() error {
	text, err := r.encode()
	if err != nil {
		return err
	}
	if len(text) > maxListBytes {
		return fmt.Errorf("the list of what is revoked would have %d bytes, %d are possible", len(text), maxListBytes)
	}
	return nil
}

// answer notes what became of a request.
func (r Revoked) answer(request string, err error, now time.Time) Revoked {
	outcome := RevokeOutcome{Request: request, At: now.UTC()}
	if err != nil {
		outcome.Refused = err.Error()
	}
	r.Outcomes = append(slices.Clone(r.Outcomes), outcome)
	if over := len(r.Outcomes) - maxOutcomes; over > 0 {
		r.Outcomes = r.Outcomes[over:]
	}
	return r
}
