package workload_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

var types = []string{
	workload.AddressType, workload.AuthorizationType, workload.TrustBundleType, workload.ConfigType, workload.RevocationListType, workload.NamespaceType, workload.EgressPolicyType,
	workload.RequestPolicyType, workload.BindingType, workload.RequestAuthenticationType,
}

// FuzzApply: whatever the bytes of a resource of any type, a store neither panics
// nor counts what it rejected, but for a policy, and a removal leaves nothing.
func FuzzApply(f *testing.F) {
	add := func(typeURL string, m proto.Message) {
		for i, known := range types {
			if known == typeURL {
				r := workloadtest.Resource(f, m)
				f.Add(uint(i), r.Name, r.Body.GetValue())
			}
		}
	}
	add(workload.AddressType, pod(nil))
	add(workload.AddressType, service(nil))
	add(workload.ConfigType, &mesh.Config{TrustDomain: "cluster.local", ClusterId: "k", PodRanges: []string{"10.0.0.0/8", "fd00::/16"}})
	add(workload.TrustBundleType, &mesh.TrustBundle{TrustDomain: "cluster.local", Roots: []string{"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}})
	add(workload.RevocationListType, &mesh.RevocationList{
		TrustDomain:  "cluster.local",
		Certificates: []*mesh.RevokedCertificates{{Issuer: strings.Repeat("0a", 32), Serials: []string{"1", "ff00"}}},
		Identities:   []*mesh.RevokedIdentity{{Identity: "spiffe://cluster.local/ns/shop/sa/web", BegunBefore: 1}},
	})
	add(workload.RequestPolicyType, &mesh.RequestPolicy{Name: "a", Namespace: "shop", Action: mesh.RequestPolicy_CUSTOM, Rules: []*mesh.RequestRule{{Condition: "true"}}})
	add(workload.BindingType, &mesh.Binding{Target: &mesh.Binding_Service{Service: "shop/web.shop.svc"}, Waypoint: "shop/way", Policies: []string{"shop/a"}, Authentications: []string{"shop/b"}, ClaimHeaders: []string{"x"}})
	add(workload.RequestAuthenticationType, &mesh.RequestAuthentication{Name: "b", Namespace: "shop", Rules: []*mesh.TokenRule{{Issuer: "me"}}})
	add(workload.AuthorizationType, &security.Authorization{Name: "a", Namespace: "shop", Scope: security.Scope_NAMESPACE, Action: security.Action_DENY})
	f.Fuzz(func(t *testing.T, kind uint, name string, body []byte) {
		typeURL := types[kind%uint(len(types))]
		store := workload.NewStore()
		rejected := store.Apply(workload.Delta{Type: typeURL, Upserts: []workload.Resource{
			{Name: name, Version: "1", Aliases: []string{name}, Body: &anypb.Any{TypeUrl: typeURL, Value: body}},
		}})
		// A policy that cannot be read is in force all the same: it denies.
		if got := store.Snapshot().Count(typeURL); got != 1-len(rejected) && typeURL != workload.AuthorizationType {
			t.Fatalf("%s: %d rejected, %d in force", typeURL, len(rejected), got)
		}
		for _, r := range rejected {
			if r.Error() == "" {
				t.Fatal("rejected without a reason")
			}
		}
		if typeURL == workload.ConfigType || typeURL == workload.RevocationListType {
			return // what the mesh is, and whom it refuses, stays known when it is not said any more
		}
		store.Apply(workload.Delta{Type: typeURL, Removed: []string{name}})
		if got, want := store.Snapshot().Version(), workload.NewStore().Snapshot().Version(); got != want {
			t.Fatal("something is left after the removal")
		}
	})
}
