package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/revocation"
)

// DefaultTolerance is how long after the end of its certificate the peer of a live
// tunnel is still trusted: by that much clocks of nodes may differ, as the CA has it
// when it dates certificates back.
const DefaultTolerance = 2 * time.Minute

// Proof is a finished handshake, in which both ends have shown who they are.
type Proof struct {
	State tls.ConnectionState
	At    time.Time
}

// Trusts tells whether the peer of a live tunnel is still one to be trusted: by the
// handshake that the tunnel began with or, as far as roots that are gone and
// certificates that have ended are concerned, by the latest of the same peer. What is
// revoked stays so, whatever the peer has shown since.
//
// again is when expiry may make another answer of it, for whom the clock is not set.
// The error of a peer that has expired is a [x509.CertificateInvalidError].
func (s *Store) Trusts(own, latest Proof) (again time.Duration, err error) {
	if len(own.State.PeerCertificates) == 0 || len(latest.State.PeerCertificates) == 0 {
		return 0, errors.New("peer has no certificate")
	}
	chains := [][]*x509.Certificate{own.State.PeerCertificates} // as they were shown, if there is no root above them any more
	until := own.State.PeerCertificates[0].NotAfter
	ways, err := s.ways(own)
	if err == nil {
		chains = ways
	} else {
		until = time.Time{}
		if ways, err = s.ways(latest); err == nil {
			chains = append(chains, ways...)
		}
	}
	if err == nil {
		err = s.revoked().Check(chains)
	}
	if err != nil {
		return 0, fmt.Errorf("peer's certificate is no longer trusted: %w", err)
	}
	shown := latest.State.PeerCertificates[0]
	if shown.NotAfter.After(until) {
		until = shown.NotAfter
	}
	now := s.now()
	end := until.Add(s.config.Tolerance)
	if now.After(end) {
		return 0, fmt.Errorf("peer has shown no other certificate since: %w", x509.CertificateInvalidError{
			Cert: shown, Reason: x509.Expired,
			Detail: fmt.Sprintf("current time %s is after %s", now.UTC().Format(time.RFC3339), until.UTC().Format(time.RFC3339)),
		})
	}
	return end.Sub(now) + time.Millisecond, nil // after the end, not at it
}

// ways from a peer's certificate up to the roots of now, as of when it was shown.
func (s *Store) ways(p Proof) ([][]*x509.Certificate, error) {
	return p.State.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: pool(s.config.Bundle()), Intermediates: pool(p.State.PeerCertificates[1:]), CurrentTime: p.At,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
}

// Retires tells whether a certificate that either end has shown is below a root that
// signs no more: once that is gone, the other end trusts it no longer.
func (s *Store) Retires(p Proof) bool {
	if s.config.Retiring == nil {
		return false
	}
	retiring := s.config.Retiring()
	if len(retiring) == 0 {
		return false
	}
	own := p
	own.State.PeerCertificates = nil
	for _, der := range p.State.LocalCertificate {
		if parsed, err := x509.ParseCertificate(der); err == nil {
			own.State.PeerCertificates = append(own.State.PeerCertificates, parsed)
		}
	}
	for _, shown := range []Proof{p, own} {
		if len(shown.State.PeerCertificates) == 0 {
			continue
		}
		ways, err := s.ways(shown)
		if err != nil {
			return true
		}
		for _, way := range ways {
			if slices.Contains(retiring, fingerprint(way[len(way)-1])) {
				return true
			}
		}
	}
	return false
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
