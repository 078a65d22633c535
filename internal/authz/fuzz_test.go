package authz_test

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// FuzzDecide reads a policy as it comes from the wire and judges a connection by it:
// what the reference does not let in is not let in, and what cannot be read lets in
// nothing that it would not let in if it were absent.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(24) {
		r := newRandom(seed)
		c := r.connection()
		wire, err := proto.Marshal(r.policy("p"))
		if err != nil { // what is not UTF-8 is not for the wire
			continue
		}
		f.Add(wire, c.Identity.TrustDomain, c.Identity.Namespace, c.Identity.ServiceAccount, c.Client.AsSlice(), c.Destination.Addr().AsSlice(), c.Destination.Port())
	}
	f.Fuzz(func(t *testing.T, wire []byte, trustDomain, namespace, account string, client, destination []byte, port uint16) {
		id, err := spiffe.New(trustDomain, namespace, account)
		from, ok := netip.AddrFromSlice(client)
		to, ok2 := netip.AddrFromSlice(destination)
		c := authz.Connection{Identity: id, Client: from, Destination: netip.AddrPortFrom(to, port)}
		a := &security.Authorization{}
		if proto.Unmarshal(wire, a) != nil {
			return
		}
		p, parseErr := authz.Parse(a.Namespace+"/"+a.Name, a)
		if p == nil || p.Err != parseErr {
			t.Fatalf("policy %v, error %v", p, parseErr)
		}
		d := authz.Decide(c, []*authz.Policy{p})
		if a.DryRun && parseErr == nil && !d.Allowed {
			t.Fatal("a dry run denied")
		}
		// The reference knows neither of unknown fields nor of unreadable connections.
		unreadable := err != nil && trustDomain+namespace+account != "" || !ok || !ok2 || from.Is4In6() || to.Is4In6() || port == 0
		if unreadable || !d.Allowed {
			return
		}
		if !(reference{c}).decide([]*security.Authorization{a}) {
			t.Fatalf("let in by %v\n%s", d.Reason, describe(c, []*security.Authorization{a}))
		}
	})
}
