package authz_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// random makes policies and connections of so few names and numbers that they meet.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 27))} }

var (
	namesOfNamespaces = []string{"shop", "shop-2", "s.op", "bank"}
	namesOfAccounts   = []string{"web", "we.b", "api", "web-2"}
	addresses         = []string{"10.0.0.1", "10.0.0.2", "10.1.0.1", "192.168.7.9", "fd00::1", "fd00:1::2"}
	ports             = []uint16{80, 8080, 9090}
)

func pick[T any](r random, from []T) T { return from[r.IntN(len(from))] }

func some[T any](r random, make func() T) (out []T) {
	if r.IntN(3) > 0 {
		return nil
	}
	for range 1 + r.IntN(3) {
		out = append(out, make())
	}
	return out
}

func (r random) connection() authz.Connection {
	c := authz.Connection{
		Client:      netip.MustParseAddr(pick(r, addresses)),
		Destination: netip.AddrPortFrom(netip.MustParseAddr(pick(r, addresses)), pick(r, ports)),
	}
	if r.IntN(4) > 0 {
		c.Identity = spiffe.ID{TrustDomain: "cluster.local", Namespace: pick(r, namesOfNamespaces), ServiceAccount: pick(r, namesOfAccounts)}
	}
	return c
}

func (r random) text(of string) *security.StringMatch {
	cut := r.IntN(len(of) + 1)
	switch r.IntN(12) {
	case 0:
		return &security.StringMatch{}
	case 1:
		return exactly(of + "\xff")
	case 2:
		return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}
	case 3, 4, 5:
		return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: of[:cut]}}
	case 6, 7, 8:
		return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: of[cut:]}}
	}
	return exactly(of)
}

func exactly(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: s}}
}

func (r random) namespace() *security.StringMatch { return r.text(pick(r, namesOfNamespaces)) }

func (r random) principal() *security.StringMatch {
	return r.text("cluster.local/ns/" + pick(r, namesOfNamespaces) + "/sa/" + pick(r, namesOfAccounts))
}

func (r random) account() *security.ServiceAccountMatch {
	if r.IntN(10) == 0 {
		return &security.ServiceAccountMatch{Namespace: "shop"}
	}
	return &security.ServiceAccountMatch{Namespace: pick(r, namesOfNamespaces), ServiceAccount: pick(r, namesOfAccounts)}
}

func (r random) block() *security.Address {
	raw := netip.MustParseAddr(pick(r, addresses)).AsSlice()
	switch r.IntN(10) {
	case 0:
		return &security.Address{Address: raw[:len(raw)-1], Length: 8}
	case 1:
		return &security.Address{Address: raw, Length: uint32(8*len(raw) + 1)}
	}
	return &security.Address{Address: raw, Length: uint32(r.IntN(8*len(raw) + 1))}
}

func (r random) port() uint32 {
	if r.IntN(10) == 0 {
		return pick(r, []uint32{0, 65536, 80 + 65536})
	}
	return uint32(pick(r, ports))
}

func (r random) match() *security.Match {
	return &security.Match{
		Namespaces: some(r, r.namespace), NotNamespaces: some(r, r.namespace),
		Principals: some(r, r.principal), NotPrincipals: some(r, r.principal),
		ServiceAccounts: some(r, r.account), NotServiceAccounts: some(r, r.account),
		SourceIps: some(r, r.block), NotSourceIps: some(r, r.block),
		DestinationIps: some(r, r.block), NotDestinationIps: some(r, r.block),
		DestinationPorts: some(r, r.port), NotDestinationPorts: some(r, r.port),
	}
}

func upTo[T any](r random, n int, make func() T) (out []T) {
	for range r.IntN(n + 1) {
		out = append(out, make())
	}
	return out
}

func (r random) rule() *security.Rule {
	return &security.Rule{Clauses: upTo(r, 2, func() *security.Clause {
		return &security.Clause{Matches: upTo(r, 3, r.match)}
	})}
}

func (r random) policy(name string) *security.Authorization {
	a := &security.Authorization{
		Namespace: "shop", Name: name, Scope: security.Scope_NAMESPACE,
		Action: security.Action(r.IntN(2)), Rules: upTo(r, 3, r.rule), DryRun: r.IntN(5) == 0,
	}
	if r.IntN(40) == 0 {
		a.Action = 7
	}
	return a
}

func (r random) policies(n int) (out []*security.Authorization) {
	for i := range r.IntN(n + 1) {
		out = append(out, r.policy(fmt.Sprintf("p%02d", i)))
	}
	return out
}

// compile as the wire's messages are: what cannot be read denies.
func compile(in []*security.Authorization) (out []*authz.Policy) {
	for _, a := range in {
		p, _ := authz.Parse(a.Namespace+"/"+a.Name, a)
		out = append(out, p)
	}
	return out
}
