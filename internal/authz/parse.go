package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/security"
)

const (
	maxPort = 65535
	// maxValues of one policy: more are no policy but a way to keep proxies busy,
	// which look at each of them for each connection.
	maxValues = 65536
)

// Unreadable is a policy of which only the name is known. Wherever it may have been
// meant to apply, it denies everything.
func Unreadable(name string, err error) *Policy {
	return &Policy{Name: name, Scope: Global, Action: Deny, Err: err, everything: true}
}

// Parse reads the authorization that the controller named name. With an error there
// is a policy all the same, which denies at least what was meant.
func Parse(name string, in *security.Authorization) (*Policy, error) {
	p := &Policy{Name: name, Namespace: in.GetNamespace(), DryRun: in.GetDryRun()}
	if err := p.head(in); err != nil {
		return Unreadable(name, err), err
	}
	r := reader{}
	switch action := in.GetAction(); {
	case hasUnknown(in):
		r.fail("", errUnknownField)
	case action == security.Action_ALLOW:
		p.Action = Allow
	case action == security.Action_DENY:
		p.Action = Deny
	default:
		r.fail("action", fmt.Errorf("%s is not known", action))
	}
	if r.err == nil {
		p.rules = each(in.GetRules(), "rules", r.rule)
		if r.values > maxValues {
			r.err = fmt.Errorf("rules: more than %d values", maxValues)
			r.whole = true
		}
	} else {
		r.whole = true
	}
	if r.whole {
		p.Action, p.everything, p.rules = Deny, true, nil
	}
	p.Err = r.err
	return p, r.err
}

// head reads what says where a policy applies: without that, it may be anywhere.
func (p *Policy) head(in *security.Authorization) error {
	switch s := in.GetScope(); s {
	case security.Scope_GLOBAL:
		p.Scope = Global
	case security.Scope_NAMESPACE:
		p.Scope = Namespace
	case security.Scope_WORKLOAD_SELECTOR:
		p.Scope = Selector
	default:
		return fmt.Errorf("scope: %s is not known", s)
	}
	switch {
	case in.GetName() == "" || !utf8.ValidString(in.GetName()):
		return fmt.Errorf("name: %q is no name", in.GetName())
	case in.GetNamespace() == "" || !utf8.ValidString(in.GetNamespace()):
		return fmt.Errorf("namespace: %q is no name", in.GetNamespace())
	case p.Name != in.GetNamespace()+"/"+in.GetName():
		return fmt.Errorf("name: %s/%s is sent as %q", in.GetNamespace(), in.GetName(), p.Name)
	}
	return nil
}

var (
	errUnknownField = errors.New("has a field that is not known, which may narrow it")
	errEmpty        = errors.New("empty")
	errNotUTF8      = errors.New("is not UTF-8")
)

// hasUnknown tells whether a message says more than is understood here.
func hasUnknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

// reader reads the rules of one policy. Of what is wrong it remembers the first, and
// leaves what it read in a state that denies at least what was meant.
type reader struct {
	err    error
	whole  bool // nothing of the policy can be relied on
	values int
}

func (r *reader) fail(field string, err error) {
	switch {
	case r.err != nil:
	case field == "":
		r.err = err
	default:
		r.err = fmt.Errorf("%s: %w", field, err)
	}
}

// each reads a list, and names its elements.
func each[In, Out any](in []In, field string, read func(In, string) Out) []Out {
	out := make([]Out, 0, len(in))
	for i, v := range in {
		out = append(out, read(v, fmt.Sprintf("%s[%d]", field, i)))
	}
	return out
}

// unread is a condition of which nothing is known.
func unread() condition { return condition{kind: unknownKind} }

func (r *reader) rule(in *security.Rule, field string) rule {
	if hasUnknown(in) {
		r.fail(field, errUnknownField)
		return rule{{{unread()}}}
	}
	return each(in.GetClauses(), field+".clauses", r.clause)
}

func (r *reader) clause(in *security.Clause, field string) clause {
	if hasUnknown(in) {
		r.fail(field, errUnknownField)
		return clause{{unread()}}
	}
	return each(in.GetMatches(), field+".matches", r.match)
}

func (r *reader) match(in *security.Match, field string) (m match) {
	if hasUnknown(in) {
		r.fail(field, errUnknownField)
		m = append(m, unread())
	}
	add := func(negated bool, c condition, values int) {
		r.values += values
		if values > 0 {
			c.negated = negated
			m = append(m, c)
		}
	}
	add(false, r.texts(namespaces, in.GetNamespaces(), field+".namespaces"), len(in.GetNamespaces()))
	add(true, r.texts(namespaces, in.GetNotNamespaces(), field+".not_namespaces"), len(in.GetNotNamespaces()))
	add(false, r.texts(principals, in.GetPrincipals(), field+".principals"), len(in.GetPrincipals()))
	add(true, r.texts(principals, in.GetNotPrincipals(), field+".not_principals"), len(in.GetNotPrincipals()))
	add(false, r.accounts(in.GetServiceAccounts(), field+".service_accounts"), len(in.GetServiceAccounts()))
	add(true, r.accounts(in.GetNotServiceAccounts(), field+".not_service_accounts"), len(in.GetNotServiceAccounts()))
	add(false, r.blocks(sourceIPs, in.GetSourceIps(), field+".source_ips"), len(in.GetSourceIps()))
	add(true, r.blocks(sourceIPs, in.GetNotSourceIps(), field+".not_source_ips"), len(in.GetNotSourceIps()))
	add(false, r.blocks(destinationIPs, in.GetDestinationIps(), field+".destination_ips"), len(in.GetDestinationIps()))
	add(true, r.blocks(destinationIPs, in.GetNotDestinationIps(), field+".not_destination_ips"), len(in.GetNotDestinationIps()))
	add(false, r.ports(in.GetDestinationPorts(), field+".destination_ports"), len(in.GetDestinationPorts()))
	add(true, r.ports(in.GetNotDestinationPorts(), field+".not_destination_ports"), len(in.GetNotDestinationPorts()))
	return m
}

// values reads the values of a condition; those that cannot be read are told of and
// leave the condition unread.
func values[In, Out any](r *reader, in []In, field string, parse func(In) (Out, error)) (out []Out, unread bool) {
	for i, v := range in {
		value, err := parse(v)
		if err != nil {
			r.fail(fmt.Sprintf("%s[%d]", field, i), err)
			unread = true
			continue
		}
		out = append(out, value)
	}
	return out, unread
}

func (r *reader) texts(k kind, in []*security.StringMatch, field string) condition {
	c := condition{kind: k}
	c.texts, c.unread = values(r, in, field, parseText)
	return c
}

func (r *reader) accounts(in []*security.ServiceAccountMatch, field string) condition {
	c := condition{kind: serviceAccounts}
	c.accounts, c.unread = values(r, in, field, parseAccount)
	return c
}

func (r *reader) blocks(k kind, in []*security.Address, field string) condition {
	c := condition{kind: k}
	c.blocks, c.unread = values(r, in, field, parseBlock)
	return c
}

func (r *reader) ports(in []uint32, field string) condition {
	c := condition{kind: destinationPorts}
	c.ports, c.unread = values(r, in, field, func(port uint32) (uint16, error) {
		if port == 0 || port > maxPort {
			return 0, fmt.Errorf("%d, want 1 to %d", port, maxPort)
		}
		return uint16(port), nil
	})
	return c
}

func parseText(in *security.StringMatch) (t text, err error) {
	switch m := in.GetMatchType().(type) {
	case *security.StringMatch_Exact:
		t = text{exact, m.Exact}
	case *security.StringMatch_Prefix:
		t = text{prefix, m.Prefix}
	case *security.StringMatch_Suffix:
		t = text{suffix, m.Suffix}
	case *security.StringMatch_Presence:
		t = text{how: presence}
	default:
		return t, errors.New("match_type: neither exact, prefix, suffix nor presence")
	}
	switch {
	case hasUnknown(in):
		return t, errUnknownField
	case !utf8.ValidString(t.value):
		return t, errNotUTF8
	}
	return t, nil
}

func parseAccount(in *security.ServiceAccountMatch) (account, error) {
	a := account{in.GetNamespace(), in.GetServiceAccount()}
	switch {
	case hasUnknown(in):
		return a, errUnknownField
	case a.namespace == "":
		return a, fmt.Errorf("namespace: %w", errEmpty)
	case a.name == "":
		return a, fmt.Errorf("serviceAccount: %w", errEmpty)
	case !utf8.ValidString(a.namespace) || !utf8.ValidString(a.name):
		return a, errNotUTF8
	}
	return a, nil
}

func parseBlock(in *security.Address) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(in.GetAddress())
	if !ok {
		return netip.Prefix{}, fmt.Errorf("address: %d bytes, want 4 or 16", len(in.GetAddress()))
	}
	length := int(min(in.GetLength(), 255))
	if hasUnknown(in) {
		return netip.Prefix{}, errUnknownField
	}
	if length > addr.BitLen() {
		return netip.Prefix{}, fmt.Errorf("length: %d, want at most %d", in.GetLength(), addr.BitLen())
	}
	if addr.Is4In6() {
		// The same addresses, in the form in which connections have them.
		const mapped = 96
		if length < mapped {
			return netip.Prefix{}, fmt.Errorf("length: %d, want at least %d of an IPv4 address in the form of IPv6", length, mapped)
		}
		addr, length = addr.Unmap(), length-mapped
	}
	return netip.PrefixFrom(addr, length).Masked(), nil
}
