package workload_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// The bundle in force is that of the mesh's own trust domain, whichever comes first.
func TestTrustBundleIsOfTheOwnTrustDomain(t *testing.T) {
	own, other := root(t), root(t)
	store := workloadtest.Store(t,
		&mesh.TrustBundle{TrustDomain: "example.org", Roots: []string{own}},
		&mesh.TrustBundle{TrustDomain: "cluster.local", Roots: []string{other, root(t)}})
	if got := store.Snapshot().TrustBundle(); len(got) != 2 {
		t.Errorf("%d roots while the trust domain is the default one, want 2", len(got))
	}
	workloadtest.Apply(t, store, &mesh.Config{TrustDomain: "example.org"})
	got := store.Snapshot().TrustBundle()
	if len(got) != 1 || pemOf(got[0]) != own {
		t.Errorf("the bundle has %d roots, want the own one", len(got))
	}
	remove(store, workload.TrustBundleType, "example.org")
	if got := store.Snapshot().TrustBundle(); len(got) != 0 {
		t.Errorf("%d roots after the removal", len(got))
	}
}

func TestOneRootPerEntry(t *testing.T) {
	two := root(t) + root(t)
	store := workload.NewStore()
	r := workloadtest.Resource(t, &mesh.TrustBundle{TrustDomain: "cluster.local", Roots: []string{two}})
	if rejected := store.Apply(workload.Delta{Type: workload.TrustBundleType, Upserts: []workload.Resource{r}}); len(rejected) != 1 {
		t.Error("two roots in one entry were accepted: the second would be lost")
	}
}

func root(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf(certificate)
}

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}
