package main

import (
	"crypto/x509"
	"log/slog"
	"os"
	"sync"

	"github.com/ambit-mesh/ambit/internal/controlplane"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// roots are the mesh's root certificates. A file tells them before the controller
// can be trusted, which Kubernetes renews; once the controller is followed, its trust
// bundle does.
type roots struct {
	// Fixed.
	path   string
	store  *workload.Store
	logger *slog.Logger

	mu sync.Mutex
	// Guarded by mu: what the file said last, and why it could not be read.
	bootstrap []*x509.Certificate
	problem   string
}

// read returns what the file says, or said when it could be read.
func (r *roots) read() []*x509.Certificate {
	content, err := os.ReadFile(r.path)
	var parsed []*x509.Certificate
	if err == nil {
		parsed, err = controlplane.ParseRoots(content)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.bootstrap, r.problem = parsed, ""
	case err.Error() != r.problem:
		r.problem = err.Error()
		r.logger.Error("root certificates not read", "path", r.path, "error", err)
	}
	return r.bootstrap
}

// bundle is what peers' certificates must chain to.
func (r *roots) bundle() []*x509.Certificate {
	if pushed := r.store.Snapshot().TrustBundle(); len(pushed) > 0 {
		return pushed
	}
	return r.read()
}

func (r *roots) retiring() []string { return r.store.Snapshot().RetiringRoots() }

func (r *roots) revoked() *revocation.List { return r.store.Snapshot().Revoked() }

// pool is what the controller's certificate must chain to; nil while nothing is
// known. While roots are being exchanged it may be of either source's.
func (r *roots) pool() *x509.CertPool {
	all := append(append([]*x509.Certificate(nil), r.store.Snapshot().TrustBundle()...), r.read()...)
	if len(all) == 0 {
		return nil
	}
	pool := x509.NewCertPool()
	for _, root := range all {
		pool.AddCert(root)
	}
	return pool
}
