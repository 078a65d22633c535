package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// servingCertificate is what the controller shows to its clients.
type servingCertificate struct {
	tls *tls.Certificate
	// renewAt is half its life.
	renewAt time.Time
}

// GetCertificate is for tls.Config: the controller's certificate, made when
// first asked for and again at half its life. It lives in memory only.
func (a *Authority) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.issuer == nil {
		return nil, errNoIssuer
	}
	if a.serving != nil && a.cfg.Now().Before(a.serving.renewAt) {
		return a.serving.tls, nil
	}
	next, err := a.newServingCertificateLocked()
	if err != nil {
		return nil, fmt.Errorf("renew serving certificate: %w", err)
	}
	if a.serving != nil {
		a.cfg.Logger.Info("renewed serving certificate", "not_after", next.tls.Leaf.NotAfter)
	}
	a.serving = next
	return next.tls, nil
}

func (a *Authority) newServingCertificateLocked() (*servingCertificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	service := "controller." + a.cfg.SystemNamespace + ".svc"
	leaf, err := a.issuer.sign(&x509.Certificate{
		DNSNames:    []string{service, service + ".cluster.local", "localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public(), maxLifetime, a.cfg.Now())
	if err != nil {
		return nil, err
	}
	chain := [][]byte{leaf.Raw}
	for _, above := range a.issuer.chain {
		chain = append(chain, above.Raw)
	}
	return &servingCertificate{
		tls:     &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf},
		renewAt: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2),
	}, nil
}
