package certs

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Locker outlives the process: what it keeps spares the next one the CA. The
// name of a secret is an identity's.
type Locker interface {
	// Load returns what was saved, or nil.
	Load(name string) []byte
	Save(name string, secret []byte)
	Remove(name string)
	// Retain removes all but the named.
	Retain(names []string)
}

// linger is how long key and certificate of an identity that nobody wants any
// more are held back: a pod that is replaced, or whose sandbox is made anew,
// finds them again, whether or not the CA can be reached.
const linger = 10 * time.Minute

// RetainKept removes from the locker what it keeps of identities that this
// node's pods no longer have. To be called once all of them are wanted.
func (s *Store) RetainKept() {
	if s.config.Locker == nil {
		return
	}
	s.keeping.Lock()
	defer s.keeping.Unlock()
	s.mu.Lock()
	var names []string
	for id := range s.entries {
		names = append(names, id.String())
	}
	s.mu.Unlock()
	s.config.Locker.Retain(names)
}

// recall returns what the last process kept of an identity, if it may be used
// now and this one has had nothing of it yet.
func (s *Store) recall(e *entry, had bool) *tls.Certificate {
	roots := s.config.Bundle()
	if s.config.Locker == nil || had || len(roots) == 0 {
		return nil
	}
	s.keeping.Lock()
	defer s.keeping.Unlock()
	name := e.id.String()
	secret := s.config.Locker.Load(name)
	if secret == nil {
		return nil
	}
	certificate, err := decodeKept(secret, e.id)
	if err == nil && s.now().After(certificate.Leaf.NotAfter) {
		err = fmt.Errorf("the certificate ended at %s", certificate.Leaf.NotAfter)
	}
	if err != nil {
		s.config.Logger.Info("kept certificate removed", "identity", name, "error", err)
		s.config.Locker.Remove(name)
		return nil
	}
	err = s.mayUse(certificate, pool(roots))
	if errors.Is(err, revocation.ErrRevoked) {
		s.config.Logger.Warn("kept certificate removed", "identity", name, "error", err)
		s.config.Locker.Remove(name)
		return nil
	}
	// A clock or a bundle may be right again later: then this is, too.
	if err != nil {
		s.config.Logger.Info("kept certificate not used", "identity", name, "error", err)
		return nil
	}
	s.config.Logger.Info("certificate kept by the last process is used", "identity", name, "expires", certificate.Leaf.NotAfter)
	return certificate
}

// store keeps the certificate of an entry for the next process.
func (s *Store) store(e *entry, certificate *tls.Certificate) {
	if s.config.Locker == nil {
		return
	}
	secret, err := encodeKept(certificate)
	if err != nil {
		s.config.Logger.Error("certificate not kept", "identity", e.id.String(), "error", err)
		return
	}
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if s.current(e) == e {
		s.config.Locker.Save(e.id.String(), secret)
	}
}

// removeKept removes what the locker has of an entry's identity.
func (s *Store) removeKept(e *entry) {
	if s.config.Locker == nil {
		return
	}
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if s.current(e) == e {
		s.config.Locker.Remove(e.id.String())
	}
}

// unstore is the end of an entry: nothing of its identity is kept, unless the
// identity is wanted again.
func (s *Store) unstore(e *entry) {
	if s.config.Locker == nil {
		return
	}
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if s.current(e) == nil {
		s.config.Locker.Remove(e.id.String())
	}
}

// current returns the entry of an entry's identity now.
func (s *Store) current(e *entry) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[e.id]
}

// encodeKept writes the key first, and the chain as peers get it.
func encodeKept(certificate *tls.Certificate) ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	for _, der := range certificate.Certificate {
		secret = append(secret, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return secret, nil
}

// decodeKept reads what encodeKept wrote, if it is an identity's.
func decodeKept(secret []byte, id spiffe.ID) (*tls.Certificate, error) {
	block, rest := pem.Decode(secret)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it does not begin with a key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("decode key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T signs nothing", key)
	}
	certificate, err := assemble([]string{string(rest)})
	if err != nil {
		return nil, err
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certificate.Leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if got, err := spiffe.FromCertificate(certificate.Leaf); err != nil || got != id {
		return nil, fmt.Errorf("the certificate is for %s, not for %s (%v)", got, id, err)
	}
	certificate.PrivateKey = key
	return certificate, nil
}
