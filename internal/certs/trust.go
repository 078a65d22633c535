package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/revocation"
)

// DefaultTolerance is how long after the end of its certificate the peer of a live
// tunnel is still trusted: by that much clocks of nodes may differ, as the CA has it
// when it dates certificates back.
const DefaultTolerance = 2 * time.Minute

// Trusts tells whether a peer that was accepted at some time is still vouched for by
// the bundle of now, not revoked, and not expired: until is the end of the latest
// certificate by which the peer has proven itself, in this tunnel or in a later one.
//
// again is when expiry may make another answer of it, for whom the clock is not set.
// The error of one that has expired is a [x509.CertificateInvalidError].
func (s *Store) Trusts(state tls.ConnectionState, accepted, until time.Time) (again time.Duration, err error) {
	if len(state.PeerCertificates) == 0 {
		return 0, errors.New("peer has no certificate")
	}
	leaf := state.PeerCertificates[0]
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool(s.config.Bundle()), Intermediates: pool(state.PeerCertificates[1:]), CurrentTime: accepted,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err == nil {
		err = s.revoked().Check(chains)
	}
	if err != nil {
		return 0, fmt.Errorf("peer's certificate is no longer trusted: %w", err)
	}
	if until.Before(leaf.NotAfter) {
		until = leaf.NotAfter
	}
	now := s.now()
	end := until.Add(s.config.Tolerance)
	if now.After(end) {
		return 0, fmt.Errorf("peer has shown no other certificate since: %w", x509.CertificateInvalidError{
			Cert: leaf, Reason: x509.Expired,
			Detail: fmt.Sprintf("current time %s is after %s", now.UTC().Format(time.RFC3339), until.UTC().Format(time.RFC3339)),
		})
	}
	return end.Sub(now) + time.Millisecond, nil // after the end, not at it
}

// Until is the moment up to which both sides of a finished handshake have proven
// themselves: the end of whichever certificate ends first.
func Until(state tls.ConnectionState) time.Time {
	var until time.Time
	earlier := func(leaf *x509.Certificate) {
		if until.IsZero() || leaf.NotAfter.Before(until) {
			until = leaf.NotAfter
		}
	}
	if len(state.PeerCertificates) > 0 {
		earlier(state.PeerCertificates[0])
	}
	if len(state.LocalCertificate) > 0 {
		if own, err := x509.ParseCertificate(state.LocalCertificate[0]); err == nil {
			earlier(own)
		}
	}
	return until
}

// revoked is what is revoked now.
func (s *Store) revoked() *revocation.List {
	if s.config.Revoked == nil {
		return nil
	}
	return s.config.Revoked()
}

// TrustChanged is closed once the bundle, what is revoked, or the clock has changed.
func (s *Store) TrustChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trustChanged
}

// trustHasChangedLocked tells all who wait for that.
func (s *Store) trustHasChangedLocked() {
	close(s.trustChanged)
	s.trustChanged = make(chan struct{})
}
