package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/revocation"
)

// Trusts tells whether a peer that was accepted at some time is still vouched for by
// the bundle of now, and not revoked. That its certificate has expired since is no matter: it was
// proven while it lasted.
func (s *Store) Trusts(state tls.ConnectionState, accepted time.Time) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("peer has no certificate")
	}
	chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: pool(s.config.Bundle()), Intermediates: pool(state.PeerCertificates[1:]), CurrentTime: accepted,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("peer's certificate is no longer trusted: %w", err)
	}
	if err := s.revoked().Check(chains); err != nil {
		return fmt.Errorf("peer's certificate is no longer trusted: %w", err)
	}
	return nil
}

// revoked is what is revoked now.
func (s *Store) revoked() *revocation.List {
	if s.config.Revoked == nil {
		return nil
	}
	return s.config.Revoked()
}

// TrustChanged is closed once the bundle or what is revoked has changed.
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
