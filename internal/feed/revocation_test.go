package feed_test

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// What is revoked stays so across a restart without the controller, and when the
// controller comes back with a list that cannot be read, or with none.
func TestRevocationsOutliveTheController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "snapshot.pb")
		list := &mesh.RevocationList{
			TrustDomain:  "cluster.local",
			Certificates: []*mesh.RevokedCertificates{{Issuer: strings.Repeat("a0", 32), Serials: []string{"1f"}}},
		}
		c := newController(t)
		f := run(t, c, at(path))
		c.accept().serve(meshConfig, list)
		f.stop()
		c.stop()

		c = newController(t)
		c.stop()
		f = run(t, c, at(path))
		if !isSynced(f) || f.store.Snapshot().Revoked().Len() != 1 {
			t.Fatalf("after a restart without the controller %d are revoked, want 1", f.store.Snapshot().Revoked().Len())
		}

		c.start()
		s := c.accept()
		if known := s.first()[workload.RevocationListType].GetInitialResourceVersions(); len(known) != 1 {
			t.Errorf("told of %v, want the list that was on disk", known)
		}
		unreadable := &mesh.RevocationList{
			TrustDomain:  "cluster.local",
			Certificates: []*mesh.RevokedCertificates{{Issuer: "who", Serials: []string{"1f"}}},
		}
		nack := s.push(workload.RevocationListType, nil, unreadable).GetErrorDetail()
		if nack == nil || !strings.Contains(nack.GetMessage(), `issuer "who"`) {
			t.Errorf("a list that cannot be read is answered %v", nack)
		}
		if nack := s.push(workload.RevocationListType, []string{"cluster.local"}).GetErrorDetail(); nack == nil {
			t.Error("the list's removal is acknowledged")
		}
		if n := f.store.Snapshot().Revoked().Len(); n != 1 {
			t.Errorf("%d are revoked after both, want 1", n)
		}
		f.stop()
		c.stop()

		c = newController(t)
		c.stop()
		if f = run(t, c, at(path)); !isSynced(f) || f.store.Snapshot().Revoked().Len() != 1 {
			t.Errorf("after another restart %d are revoked, want 1", f.store.Snapshot().Revoked().Len())
		}
	})
}

// Who pretends to be the controller with a revoked certificate is not followed.
func TestARevokedControllerIsNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		list, err := revocation.New([]revocation.Certificate{{Issuer: revocation.KeyID(c.ca.root), Serial: "2"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		run(t, c, func(config *feed.Config) { config.Revoked = func() *revocation.List { return list } })
		select {
		case <-c.streams:
			t.Error("followed")
		case <-time.After(patience):
		}
	})
}
