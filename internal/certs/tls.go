package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// protocol is what a tunnel speaks over TLS.
const protocol = "h2"

// ServerConfig returns the TLS configuration with which id accepts peers of its
// own trust domain; one of expected, if any are given. Certificate and bundle
// are those of each handshake's moment.
func (s *Store) ServerConfig(id spiffe.ID, expected ...spiffe.ID) *tls.Config {
	config := s.config13(id, expected, x509.ExtKeyUsageClientAuth)
	config.ClientAuth = tls.RequireAnyClientCert // verified by VerifyConnection
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return s.Get(hello.Context(), id)
	}
	return config
}

// ClientConfig returns the TLS configuration with which id connects to a peer
// that is one of expected, or, if none are given, anyone of its own trust domain.
func (s *Store) ClientConfig(id spiffe.ID, expected ...spiffe.ID) *tls.Config {
	config := s.config13(id, expected, x509.ExtKeyUsageServerAuth)
	config.InsecureSkipVerify = true // names are not how peers are known: VerifyConnection does it all
	config.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return s.Get(request.Context(), id)
	}
	return config
}

// config13 is what both sides have in common.
func (s *Store) config13(id spiffe.ID, expected []spiffe.ID, usage x509.ExtKeyUsage) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol},
		// A resumed session would outlive the certificate that it began with.
		SessionTicketsDisabled: true,
		// Streams of many connections gain nothing from small records at the start.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return s.verify(state, id, expected, usage)
		},
	}
}

// verify decides whether a peer is accepted.
func (s *Store) verify(state tls.ConnectionState, self spiffe.ID, expected []spiffe.ID, usage x509.ExtKeyUsage) error {
	if state.NegotiatedProtocol != protocol {
		return fmt.Errorf("peer does not speak %s", protocol)
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("peer has no certificate")
	}
	leaf := state.PeerCertificates[0]
	intermediates := pool(state.PeerCertificates[1:])
	if err := s.verifyChain(leaf, intermediates, pool(s.config.Bundle()), usage); err != nil {
		return fmt.Errorf("peer's certificate: %w", err)
	}
	peer, err := spiffe.FromCertificate(leaf)
	if err != nil {
		return fmt.Errorf("peer's certificate: %w", err)
	}
	if peer.TrustDomain != self.TrustDomain {
		return fmt.Errorf("peer %s is of another trust domain than %s", peer, self)
	}
	if len(expected) > 0 && !slices.Contains(expected, peer) {
		return fmt.Errorf("peer is %s, expected %v", peer, expected)
	}
	return nil
}

// PeerID returns the verified identity of the peer of a finished handshake.
func PeerID(state tls.ConnectionState) (spiffe.ID, error) {
	if !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return spiffe.ID{}, errors.New("peer is not authenticated")
	}
	return spiffe.FromCertificate(state.PeerCertificates[0])
}

func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}

// mayUse tells whether our own certificate is one that peers will accept.
func (s *Store) mayUse(certificate *tls.Certificate, roots *x509.CertPool) error {
	intermediates := x509.NewCertPool()
	for _, der := range certificate.Certificate[1:] {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		intermediates.AddCert(parsed)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := s.verifyChain(certificate.Leaf, intermediates, roots, usage); err != nil {
			return err
		}
	}
	return nil
}

// rootOf returns the fingerprint of the root that our own certificate chains to:
// SHA-256 of the root, in hex. Empty if it chains to none.
func (s *Store) rootOf(certificate *tls.Certificate, roots *x509.CertPool) string {
	intermediates := x509.NewCertPool()
	for _, der := range certificate.Certificate[1:] {
		if parsed, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(parsed)
		}
	}
	chains, err := certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: s.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return ""
	}
	return fingerprint(chains[0][len(chains[0])-1])
}

// fingerprint of a root, as the trust bundle names it.
func fingerprint(root *x509.Certificate) string {
	sum := sha256.Sum256(root.Raw)
	return hex.EncodeToString(sum[:])
}

// checkUsage says why a certificate is not one to be a client's or a server's, which
// [x509.Certificate.Verify] does not: to it, one that says nothing is good for
// everything, and one that may sign others is as good as a leaf.
func checkUsage(leaf *x509.Certificate, usage x509.ExtKeyUsage) error {
	switch {
	case leaf.IsCA:
		return errors.New("it is an authority's, not a workload's")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("its key is not for signatures")
	case !slices.Contains(leaf.ExtKeyUsage, usage):
		return fmt.Errorf("it is not for %s", usageNames[usage])
	}
	return nil
}

var usageNames = map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "servers (serverAuth)", x509.ExtKeyUsageClientAuth: "clients (clientAuth)"}

// verifyChain finds the ways up to the roots, and whether something on them is revoked.
func (s *Store) verifyChain(leaf *x509.Certificate, intermediates, roots *x509.CertPool, usage x509.ExtKeyUsage) error {
	if err := checkUsage(leaf, usage); err != nil {
		return err
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: s.now(), KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return err
	}
	return s.revoked().Check(chains)
}
