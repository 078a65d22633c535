package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/internal/controlplane"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/statefile"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	rootConfigMap = "ambit-ca-root"
	rootKey       = "root-cert.pem"
)

// roots are the mesh's root certificates. A ConfigMap tells them before the
// controller can be trusted, and a copy of it while Kubernetes is not there;
// once the controller is followed, its trust bundle does.
type roots struct {
	// Fixed after newRoots.
	path   string
	store  *workload.Store
	logger *slog.Logger

	// Guarded by mu.
	mu        sync.Mutex
	bootstrap []*x509.Certificate
	pem       []byte
	saveError error
}

// rootsKind of file: a handful of certificates.
var rootsKind = statefile.Kind{Name: "roots", Version: 1, MaxBytes: 1 << 20}

// rootsRetry is how soon roots that could not be saved are tried again.
const rootsRetry = 5 * time.Second

// newRoots returns the roots that the last process saved, if there are any.
func newRoots(path string, store *workload.Store, logger *slog.Logger) *roots {
	r := &roots{path: path, store: store, logger: logger}
	content, err := rootsKind.Read(path)
	if err == nil {
		r.bootstrap, err = controlplane.ParseRoots(content)
	}
	switch {
	case err == nil:
		r.pem = content
	case !errors.Is(err, fs.ErrNotExist):
		logger.Error("saved root certificates not used", "path", path, "error", err)
	}
	return r
}

// bundle is what peers' certificates must chain to.
func (r *roots) bundle() []*x509.Certificate {
	if pushed := r.store.Snapshot().TrustBundle(); len(pushed) > 0 {
		return pushed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bootstrap
}

// retiring are the fingerprints of the roots that sign no more.
func (r *roots) retiring() []string { return r.store.Snapshot().RetiringRoots() }

// revoked is what is revoked, as far as the controller has ever said.
func (r *roots) revoked() *revocation.List { return r.store.Snapshot().Revoked() }

// pool is what the controller's certificate must chain to; nil while nothing is
// known. While roots are being exchanged it may be of either source's.
func (r *roots) pool() *x509.CertPool {
	all := r.store.Snapshot().TrustBundle()
	r.mu.Lock()
	bootstrap := r.bootstrap
	r.mu.Unlock()
	if len(all)+len(bootstrap) == 0 {
		return nil
	}
	pool := x509.NewCertPool()
	for _, root := range all {
		pool.AddCert(root)
	}
	for _, root := range bootstrap {
		pool.AddCert(root)
	}
	return pool
}

func (r *roots) problems() []string {
	var all []string
	if len(r.bundle()) == 0 {
		all = append(all, "RootsUnknown: ConfigMap "+rootConfigMap+" with the mesh's root certificate is not there yet")
	}
	for _, rejection := range r.store.Snapshot().Rejected() {
		if rejection.Type == workload.RevocationListType {
			all = append(all, "RevocationsUnreadable: "+rejection.Error()+"; the last good list stays in force")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.saveError != nil {
		all = append(all, "RootsNotSaved: "+r.saveError.Error())
	}
	return all
}

// configMaps are where the roots are told before the controller can be trusted.
type configMaps interface {
	ConfigMaps(namespace, fields string) cache.ListerWatcher
}

// watch follows the ConfigMap until the context ends.
func (r *roots) watch(ctx context.Context, client configMaps, namespace string) error {
	named := fields.OneTermEqualSelector("metadata.name", rootConfigMap).String()
	informer := cache.NewSharedIndexInformer(client.ConfigMaps(namespace, named), &corev1.ConfigMap{}, 0, cache.Indexers{})
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    r.learn,
		UpdateFunc: func(_, object any) { r.learn(object) },
		// A ConfigMap that is deleted takes no trust away: whoever deletes it is not
		// the controller.
	})
	if err != nil {
		return fmt.Errorf("watch root certificates: %w", err)
	}
	var group sync.WaitGroup
	group.Go(func() { r.saveAgain(ctx) })
	informer.RunWithContext(ctx)
	group.Wait()
	return nil
}

// saveAgain tries to save what could not be saved.
func (r *roots) saveAgain(ctx context.Context) {
	ticker := time.NewTicker(rootsRetry)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		r.mu.Lock()
		unsaved, content := r.saveError != nil, r.pem
		r.mu.Unlock()
		if unsaved {
			r.save(content)
		}
	}
}

func (r *roots) save(content []byte) {
	err := rootsKind.Write(r.path, content)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && r.saveError == nil {
		r.logger.Error("root certificates not saved", "error", err)
	}
	r.saveError = err
}

func (r *roots) learn(object any) {
	config, ok := object.(*corev1.ConfigMap)
	if !ok || config.Name != rootConfigMap {
		return
	}
	content := []byte(config.Data[rootKey])
	parsed, err := controlplane.ParseRoots(content)
	if err != nil {
		r.logger.Error("root certificates not understood", "configmap", rootConfigMap, "key", rootKey, "error", err)
		return
	}
	r.mu.Lock()
	same := bytes.Equal(r.pem, content)
	r.bootstrap, r.pem = parsed, content
	r.mu.Unlock()
	if same {
		return
	}
	r.logger.Info("root certificates learnt", "count", len(parsed))
	r.save(content)
}
