package authz_test

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/authz"
)

// reference is the meaning of policies, written down once more, on the messages
// themselves and in the plainest way.
type reference struct{ authz.Connection }

// decide tells whether policies let the connection in.
func (r reference) decide(policies []*security.Authorization) bool {
	allows, allowed := false, false
	for _, p := range policies {
		if p.DryRun {
			continue
		}
		switch p.Action {
		case security.Action_ALLOW:
			allows = true
			allowed = allowed || r.policy(p)
		default: // DENY, and what nobody knows
			if p.Action != security.Action_DENY || r.policy(p) {
				return false
			}
		}
	}
	return !allows || allowed
}

func (r reference) policy(p *security.Authorization) bool {
	for _, rule := range p.Rules {
		all := true
		for _, c := range rule.Clauses {
			one := len(c.Matches) == 0
			for _, m := range c.Matches {
				one = one || r.match(m, p.Action == security.Action_DENY)
			}
			all = all && one
		}
		if all {
			return true
		}
	}
	return false
}

// kinds of a match: pairs of lists of which each value is true, false, or an error.
func (r reference) match(m *security.Match, deny bool) bool {
	holds, some := true, false
	kind := func(values, not []string) {
		// In a DENY an error in a list counts as a hit, in the not_ list as none;
		// in an ALLOW the other way round.
		if len(values) > 0 {
			some = true
			holds = holds && (has(values, "yes") || deny && has(values, "error"))
		}
		if len(not) > 0 {
			some = true
			holds = holds && !(has(not, "yes") || !deny && has(not, "error"))
		}
	}
	kind(list(m.Namespaces, r.namespace), list(m.NotNamespaces, r.namespace))
	kind(list(m.Principals, r.principal), list(m.NotPrincipals, r.principal))
	kind(list(m.ServiceAccounts, r.account), list(m.NotServiceAccounts, r.account))
	kind(list(m.SourceIps, r.source), list(m.NotSourceIps, r.source))
	kind(list(m.DestinationIps, r.destination), list(m.NotDestinationIps, r.destination))
	kind(list(m.DestinationPorts, r.port), list(m.NotDestinationPorts, r.port))
	return some && holds
}

func list[V any](in []V, judge func(V) string) (out []string) {
	for _, v := range in {
		out = append(out, judge(v))
	}
	return out
}

func has(answers []string, answer string) bool {
	for _, a := range answers {
		if a == answer {
			return true
		}
	}
	return false
}

func word(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (r reference) namespace(m *security.StringMatch) string { return r.text(m, r.Identity.Namespace) }

func (r reference) principal(m *security.StringMatch) string {
	return r.text(m, strings.TrimPrefix(r.Identity.String(), "spiffe://"))
}

func (r reference) text(m *security.StringMatch, s string) string {
	for _, part := range []string{m.GetExact(), m.GetPrefix(), m.GetSuffix()} {
		if !utf8.ValidString(part) {
			return "error"
		}
	}
	known := s != ""
	switch t := m.GetMatchType().(type) {
	case *security.StringMatch_Exact:
		return word(known && s == t.Exact)
	case *security.StringMatch_Prefix:
		return word(known && strings.HasPrefix(s, t.Prefix))
	case *security.StringMatch_Suffix:
		return word(known && strings.HasSuffix(s, t.Suffix))
	case *security.StringMatch_Presence:
		return word(known)
	}
	return "error"
}

func (r reference) account(m *security.ServiceAccountMatch) string {
	if m.Namespace == "" || m.ServiceAccount == "" {
		return "error"
	}
	return word(m.Namespace == r.Identity.Namespace && m.ServiceAccount == r.Identity.ServiceAccount)
}

func (r reference) source(a *security.Address) string      { return block(a, r.Client) }
func (r reference) destination(a *security.Address) string { return block(a, r.Destination.Addr()) }

func block(a *security.Address, addr netip.Addr) string {
	raw := addr.AsSlice()
	if n := len(a.Address); (n != 4 && n != 16) || int(a.Length) > 8*n {
		return "error"
	}
	if len(raw) != len(a.Address) {
		return "no"
	}
	for bit := range int(a.Length) {
		mask := byte(0x80 >> (bit % 8))
		if raw[bit/8]&mask != a.Address[bit/8]&mask {
			return "no"
		}
	}
	return "yes"
}

func (r reference) port(p uint32) string {
	if p == 0 || p > 65535 {
		return "error"
	}
	return word(p == uint32(r.Destination.Port()))
}
