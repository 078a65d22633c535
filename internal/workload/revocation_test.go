package workload_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// A list that cannot be read, or that is taken away, leaves the last good one in
// force; only a readable one without an entry ends a revocation.
func TestTheLastGoodRevocationsStay(t *testing.T) {
	web := spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	store := workloadtest.Store(t, &mesh.RevocationList{
		TrustDomain: "cluster.local",
		Identities:  []*mesh.RevokedIdentity{{Identity: web.String(), BegunBefore: 1000}},
	})
	stays := func(after string) {
		t.Helper()
		if got := store.Snapshot().Revoked().Begins(web); !got.Equal(time.Unix(1000, 0)) {
			t.Errorf("after %s: revoked before %s", after, got)
		}
	}
	stays("the list came")

	unread := workloadtest.Resource(t, revoked(strings.Repeat("a0", 32), "no number"))
	rejected := store.Apply(workload.Delta{Type: workload.RevocationListType, Upserts: []workload.Resource{unread}})
	if len(rejected) != 1 || !strings.Contains(rejected[0].Error(), "no number") {
		t.Errorf("an unreadable list: %v", rejected)
	}
	stays("an unreadable one")

	later := workloadtest.Resource(t, &mesh.RevocationList{TrustDomain: "cluster.local"})
	later.Body.Value = protowire.AppendVarint(protowire.AppendTag(later.Body.Value, 99, protowire.VarintType), 1)
	if rejected := store.Apply(workload.Delta{Type: workload.RevocationListType, Upserts: []workload.Resource{later}}); len(rejected) != 1 {
		t.Errorf("a list of a later version: %v", rejected)
	}
	stays("one with a field of a later version")

	if rejected := store.Apply(workload.Delta{Type: workload.RevocationListType, Removed: []string{"cluster.local"}}); len(rejected) != 1 {
		t.Errorf("a removal: %v", rejected)
	}
	stays("its removal")
	if n := len(store.Snapshot().Rejected()); n != 1 {
		t.Errorf("%d rejections are remembered, want one", n)
	}

	workloadtest.Apply(t, store, &mesh.RevocationList{TrustDomain: "cluster.local"})
	if got := store.Snapshot().Revoked(); got.Len() != 0 {
		t.Errorf("after an empty one %d are revoked", got.Len())
	}
	if n := len(store.Snapshot().Rejected()); n != 0 {
		t.Errorf("%d rejections are left", n)
	}
}

// What is in force is the list of the mesh's own trust domain.
func TestRevocationsAreOfTheOwnTrustDomain(t *testing.T) {
	store := workloadtest.Store(t, &mesh.RevocationList{
		TrustDomain:  "elsewhere.example",
		Certificates: []*mesh.RevokedCertificates{{Issuer: strings.Repeat("a0", 32), Serials: []string{"1"}}},
	})
	if n := store.Snapshot().Revoked().Len(); n != 0 {
		t.Errorf("%d revoked by another trust domain's list", n)
	}
}
