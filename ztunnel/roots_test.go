package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/kube/kubetest"
)

func pemOf(ca *certstest.CA) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Bundle()[0].Raw}))
}

func TestRootsComeFromTheConfigMapThenTheController(t *testing.T) {
	bootstrap, pushed := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local")
	path := filepath.Join(t.TempDir(), "root-cert.pem")
	store := workload.NewStore()
	logger := slog.New(slog.DiscardHandler)
	r := newRoots(path, store, logger)
	if r.pool() != nil || len(r.bundle()) > 0 || len(r.problems()) != 1 {
		t.Error("roots out of nothing")
	}

	client := fake.NewClientset(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: rootConfigMap}, Data: map[string]string{rootKey: pemOf(bootstrap)},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.watch(ctx, kubetest.Client{Interface: client}, "ambit-system") }()
	for deadline := time.Now().Add(10 * time.Second); len(r.bundle()) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the ConfigMap is not learnt")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !sameRoots(r.bundle(), bootstrap.Bundle()) || len(r.problems()) > 0 {
		t.Error("the bundle is not the ConfigMap's")
	}

	// The next process has them at once.
	next := newRoots(path, store, logger)
	if !sameRoots(next.bundle(), bootstrap.Bundle()) {
		t.Error("the roots were not saved")
	}
	workloadtest.Apply(t, store, &mesh.Config{TrustDomain: "cluster.local"}, &mesh.TrustBundle{TrustDomain: "cluster.local", Roots: []string{pemOf(pushed)}})
	if !sameRoots(next.bundle(), pushed.Bundle()) {
		t.Error("the controller's bundle does not count")
	}
	for name, ca := range map[string]*certstest.CA{"the ConfigMap": bootstrap, "the trust bundle": pushed} {
		if _, err := ca.Bundle()[0].Verify(x509.VerifyOptions{Roots: next.pool()}); err != nil {
			t.Errorf("a controller of %s's root is not trusted: %v", name, err)
		}
	}
}

// A list of what is revoked that cannot be read is told, for as long as there is no
// better one.
func TestUnreadableRevocationsAreTold(t *testing.T) {
	ca, store := certstest.NewCA(t, "cluster.local"), workload.NewStore()
	path := filepath.Join(t.TempDir(), "root-cert.pem")
	if err := rootsKind.Write(path, []byte(pemOf(ca))); err != nil {
		t.Fatal(err)
	}
	r := newRoots(path, store, slog.New(slog.DiscardHandler))
	unreadable := workloadtest.Resource(t, &mesh.RevocationList{TrustDomain: "cluster.local", Identities: []*mesh.RevokedIdentity{{Identity: "web"}}})
	store.Apply(workload.Delta{Type: workload.RevocationListType, Upserts: []workload.Resource{unreadable}})
	if p := r.problems(); len(p) != 1 || !strings.HasPrefix(p[0], "RevocationsUnreadable: ") || !strings.Contains(p[0], "identities[0]") {
		t.Errorf("problems %q", p)
	}
	workloadtest.Apply(t, store, &mesh.RevocationList{TrustDomain: "cluster.local"})
	if p := r.problems(); len(p) != 0 {
		t.Errorf("problems %q", p)
	}
}

func TestRootsThatMakeNoSenseChangeNothing(t *testing.T) {
	ca := certstest.NewCA(t, "cluster.local")
	path := filepath.Join(t.TempDir(), "root-cert.pem")
	if err := rootsKind.Write(path, []byte(pemOf(ca))); err != nil {
		t.Fatal(err)
	}
	r := newRoots(path, workload.NewStore(), slog.New(slog.DiscardHandler))
	for _, content := range []string{"", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		r.learn(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootConfigMap}, Data: map[string]string{rootKey: content}})
		if !sameRoots(r.bundle(), ca.Bundle()) {
			t.Errorf("roots lost to %q", content)
		}
	}
}

// Whom to trust is read as it was written, or not at all.
func TestSavedRootsThatWereAlteredAreNotTrusted(t *testing.T) {
	ca := certstest.NewCA(t, "cluster.local")
	path := filepath.Join(t.TempDir(), "root-cert.pem")
	trusted := func() bool {
		return len(newRoots(path, workload.NewStore(), slog.New(slog.DiscardHandler)).bundle()) > 0
	}
	if err := rootsKind.Write(path, []byte(pemOf(ca))); err != nil || !trusted() {
		t.Fatalf("what was saved is not trusted (%v)", err)
	}
	for name, do := range map[string]func() error{
		"bare PEM":       func() error { return os.WriteFile(path, []byte(pemOf(ca)), 0o600) },
		"open to others": func() error { return errors.Join(rootsKind.Write(path, []byte(pemOf(ca))), os.Chmod(path, 0o666)) },
		"another's":      func() error { return errors.Join(rootsKind.Write(path, []byte(pemOf(ca))), os.Chown(path, 65534, 0)) },
		"torn":           func() error { return errors.Join(rootsKind.Write(path, []byte(pemOf(ca))), os.Truncate(path, 300)) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if trusted() {
			t.Errorf("%s: trusted", name)
		}
	}
}

func TestRootsThatCouldNotBeSavedAreTriedAgain(t *testing.T) {
	ca := certstest.NewCA(t, "cluster.local")
	dir := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(dir, "root-cert.pem")
	synctest.Test(t, func(t *testing.T) {
		r := newRoots(path, workload.NewStore(), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { r.saveAgain(ctx) })
		r.learn(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootConfigMap}, Data: map[string]string{rootKey: pemOf(ca)}})
		if p := r.problems(); len(p) != 1 || !strings.HasPrefix(p[0], "RootsNotSaved: ") {
			t.Errorf("problems %q", p)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rootsRetry + time.Second)
		synctest.Wait()
		if p := r.problems(); len(p) > 0 {
			t.Errorf("problems %q", p)
		}
		cancel()
		group.Wait()
		if next := newRoots(path, workload.NewStore(), slog.New(slog.DiscardHandler)); !sameRoots(next.bundle(), ca.Bundle()) {
			t.Error("not saved")
		}
	})
}
