// Package workloadtest makes resources as a controller would send them, and
// stores filled with them, for tests.
package workloadtest

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Resource of a message: *api.Workload, *api.Service, *mesh.Config,
// *mesh.TrustBundle, *mesh.RevocationList, *mesh.Namespace, *mesh.EgressPolicy,
// *mesh.Binding, *mesh.RequestPolicy, *mesh.RequestAuthentication or *security.Authorization. Its version is a hash of its contents.
func Resource(t testing.TB, message proto.Message) workload.Resource {
	t.Helper()
	var (
		name    string
		aliases []string
		body    = message
	)
	switch m := message.(type) {
	case *api.Workload:
		name = m.GetUid()
		for _, b := range m.GetAddresses() {
			aliases = append(aliases, alias(b)...)
		}
		body = &api.Address{Type: &api.Address_Workload{Workload: m}}
	case *api.Service:
		name = workload.ServiceKey(m.GetNamespace(), m.GetHostname())
		for _, a := range m.GetAddresses() {
			aliases = append(aliases, alias(a.GetAddress())...)
		}
		body = &api.Address{Type: &api.Address_Service{Service: m}}
	case *mesh.Config:
		name = workload.ConfigName
	case *mesh.TrustBundle:
		name = m.GetTrustDomain()
	case *mesh.RevocationList:
		name = m.GetTrustDomain()
	case *mesh.Namespace:
		name = m.GetName()
	case *mesh.EgressPolicy:
		name = m.GetNamespace() + "/" + m.GetName()
	case *mesh.Binding:
		name = m.GetService() + m.GetWorkload() // one of the two
	case *mesh.RequestPolicy:
		name = m.GetNamespace() + "/" + m.GetName()
	case *mesh.RequestAuthentication:
		name = m.GetNamespace() + "/" + m.GetName()
	case *security.Authorization:
		name = m.GetNamespace() + "/" + m.GetName()
	default:
		t.Fatalf("%T is not a resource", message)
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(value)
	return workload.Resource{
		Name: name, Version: hex.EncodeToString(sum[:8]), Aliases: aliases,
		Body: &anypb.Any{TypeUrl: "type.googleapis.com/" + string(body.ProtoReflect().Descriptor().FullName()), Value: value},
	}
}

func alias(b []byte) []string {
	if addr, ok := netip.AddrFromSlice(b); ok {
		return []string{workload.AddressKey(addr)}
	}
	return nil
}

// Apply brings the messages into store, which must accept all of them.
func Apply(t testing.TB, store *workload.Store, messages ...proto.Message) {
	t.Helper()
	deltas := map[string]*workload.Delta{}
	for _, m := range messages {
		r := Resource(t, m)
		if deltas[r.Body.GetTypeUrl()] == nil {
			deltas[r.Body.GetTypeUrl()] = &workload.Delta{Type: r.Body.GetTypeUrl()}
		}
		d := deltas[r.Body.GetTypeUrl()]
		d.Upserts = append(d.Upserts, r)
	}
	for _, typeURL := range slices.Sorted(maps.Keys(deltas)) {
		for _, rejection := range store.Apply(*deltas[typeURL]) {
			t.Fatalf("apply: %v", rejection)
		}
	}
}

// Store holds the messages.
func Store(t testing.TB, messages ...proto.Message) *workload.Store {
	t.Helper()
	store := workload.NewStore()
	Apply(t, store, messages...)
	return store
}

// Addr is the raw form of an address.
func Addr(text string) []byte { return netip.MustParseAddr(text).AsSlice() }

// Addrs is the raw form of several.
func Addrs(texts ...string) (out [][]byte) {
	for _, text := range texts {
		out = append(out, Addr(text))
	}
	return out
}

// NetworkAddrs is addresses of the local network.
func NetworkAddrs(texts ...string) (out []*api.NetworkAddress) {
	for _, text := range texts {
		out = append(out, &api.NetworkAddress{Address: Addr(text)})
	}
	return out
}
