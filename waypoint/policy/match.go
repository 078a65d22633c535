package policy

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// judge has a subject and what is taken for an answer where there is none.
type judge struct {
	*Subject
	// deny: of a policy that denies, for which doubt is a match.
	deny bool
}

func matches(p *mesh.RequestPolicy, s *Subject, deny bool) bool {
	j := judge{s, deny}
	for _, rule := range p.GetRules() {
		if j.rule(rule) {
			return true
		}
	}
	return false
}

func (j judge) rule(r *mesh.RequestRule) bool {
	from, to := len(r.GetFrom()) == 0, len(r.GetTo()) == 0
	for _, source := range r.GetFrom() {
		from = from || j.source(source)
	}
	for _, operation := range r.GetTo() {
		to = to || j.operation(operation)
	}
	if !from || !to {
		return false
	}
	for _, condition := range r.GetWhen() {
		if !j.condition(condition) {
			return false
		}
	}
	return true
}

func (j judge) source(s *mesh.RequestSource) bool {
	principal, namespace, account := j.who()
	return !empty(len(s.GetPrincipals())+len(s.GetNotPrincipals())+len(s.GetNamespaces())+len(s.GetNotNamespaces())+
		len(s.GetServiceAccounts())+len(s.GetNotServiceAccounts())+len(s.GetIpBlocks())+len(s.GetNotIpBlocks())+
		len(s.GetRemoteIpBlocks())+len(s.GetNotRemoteIpBlocks())+len(s.GetRequestPrincipals())+len(s.GetNotRequestPrincipals()), j.deny) &&
		j.values(principal, s.GetPrincipals(), s.GetNotPrincipals()) &&
		j.values(namespace, s.GetNamespaces(), s.GetNotNamespaces()) &&
		j.names(account, s.GetServiceAccounts(), s.GetNotServiceAccounts()) &&
		j.addresses(s.GetIpBlocks(), s.GetNotIpBlocks()) &&
		j.addresses(s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks()) &&
		j.values(nil, s.GetRequestPrincipals(), s.GetNotRequestPrincipals())
}

func (j judge) operation(o *mesh.RequestOperation) bool {
	requests := len(o.GetHosts()) + len(o.GetNotHosts()) + len(o.GetMethods()) + len(o.GetNotMethods()) + len(o.GetPaths()) + len(o.GetNotPaths())
	if empty(requests+len(o.GetPorts())+len(o.GetNotPorts()), j.deny) || !j.ports(o.GetPorts(), o.GetNotPorts()) {
		return false
	}
	if requests == 0 {
		return true
	}
	if j.Request == nil {
		return j.deny
	}
	return j.values([]string{j.Request.Host}, lowered(o.GetHosts()), lowered(o.GetNotHosts())) &&
		j.values([]string{j.Request.Method}, o.GetMethods(), o.GetNotMethods()) &&
		j.values([]string{j.Request.Path}, o.GetPaths(), o.GetNotPaths())
}

// empty tells that something without fields matches nothing; in a policy that denies
// it matches, since it was meant to say something.
func empty(fields int, deny bool) bool { return fields == 0 && !deny }

// who the client is: nothing if it proved nothing.
func (j judge) who() (principal, namespace, account []string) {
	if j.Identity.IsZero() {
		return nil, nil, nil
	}
	return []string{strings.TrimPrefix(j.Identity.String(), "spiffe://")}, []string{j.Identity.Namespace},
		[]string{j.Identity.Namespace + "/" + j.Identity.ServiceAccount}
}

// condition judges one attribute.
func (j judge) condition(c *mesh.RequestCondition) bool {
	if len(c.GetValues())+len(c.GetNotValues()) == 0 {
		return j.deny
	}
	principal, namespace, account := j.who()
	switch key := c.GetKey(); {
	case key == "source.principal":
		return j.values(principal, c.GetValues(), c.GetNotValues())
	case key == "source.namespace":
		return j.values(namespace, c.GetValues(), c.GetNotValues())
	case key == "source.serviceAccount":
		return j.values(account, c.GetValues(), c.GetNotValues())
	case key == "source.ip", key == "remote.ip":
		return j.ranges(j.Client, c)
	case key == "destination.ip":
		if !j.Destination.Addr().IsValid() {
			return j.deny
		}
		return j.ranges(j.Destination.Addr(), c)
	case key == "destination.port":
		if j.Destination.Port() == 0 {
			return j.deny
		}
		return j.values([]string{portText(j.Destination.Port())}, c.GetValues(), c.GetNotValues())
	case strings.HasPrefix(key, "request.headers[") && strings.HasSuffix(key, "]"):
		if j.Request == nil {
			return j.deny
		}
		name := strings.ToLower(key[len("request.headers[") : len(key)-1])
		return j.values(header(j.Request.Fields, name), c.GetValues(), c.GetNotValues())
	case strings.HasPrefix(key, "request.auth."):
		if j.Request == nil {
			return j.deny
		}
		return j.values(nil, c.GetValues(), c.GetNotValues()) // nobody has proven anything by a token
	}
	return j.deny
}

func portText(port uint16) string { return strconv.Itoa(int(port)) }

// lowered makes hosts what requests have: of values that nobody writes in capitals,
// themselves.
func lowered(patterns []*mesh.StringPattern) []*mesh.StringPattern {
	var out []*mesh.StringPattern
	for i, p := range patterns {
		var text string
		switch m := p.GetMatch().(type) {
		case *mesh.StringPattern_Exact:
			text = m.Exact
		case *mesh.StringPattern_Prefix:
			text = m.Prefix
		case *mesh.StringPattern_Suffix:
			text = m.Suffix
		}
		if text == strings.ToLower(text) {
			continue
		}
		if out == nil {
			out = append(out, patterns...)
		}
		switch p.GetMatch().(type) {
		case *mesh.StringPattern_Exact:
			out[i] = &mesh.StringPattern{Match: &mesh.StringPattern_Exact{Exact: strings.ToLower(text)}}
		case *mesh.StringPattern_Prefix:
			out[i] = &mesh.StringPattern{Match: &mesh.StringPattern_Prefix{Prefix: strings.ToLower(text)}}
		case *mesh.StringPattern_Suffix:
			out[i] = &mesh.StringPattern{Match: &mesh.StringPattern_Suffix{Suffix: strings.ToLower(text)}}
		}
	}
	if out == nil {
		return patterns
	}
	return out
}

func header(fields []http1.Field, name string) (values []string) {
	for _, f := range fields {
		if f.Name == name {
			values = append(values, f.Value)
		}
	}
	return values
}

// values judges what a subject has, which may be several or none, by what is wanted of
// it and what is not. In a policy that denies one of several is enough, in one that
// allows all have to match.
func (j judge) values(has []string, wanted, unwanted []*mesh.StringPattern) bool {
	if len(wanted) > 0 && !j.several(has, func(v string) bool { return anyOf(wanted, v) }, false) {
		return false
	}
	return len(unwanted) == 0 || j.several(has, func(v string) bool { return !anyOf(unwanted, v) }, true)
}

// several asks about each value; of none, absent is the answer.
func (j judge) several(has []string, is func(string) bool, absent bool) bool {
	if len(has) == 0 {
		return absent
	}
	for _, v := range has {
		if is(v) == j.deny {
			return j.deny
		}
	}
	return !j.deny
}

func anyOf(patterns []*mesh.StringPattern, v string) bool {
	for _, p := range patterns {
		if matchesPattern(p, v) {
			return true
		}
	}
	return false
}

func matchesPattern(p *mesh.StringPattern, v string) bool {
	switch m := p.GetMatch().(type) {
	case *mesh.StringPattern_Exact:
		return v == m.Exact
	case *mesh.StringPattern_Prefix:
		return strings.HasPrefix(v, m.Prefix)
	case *mesh.StringPattern_Suffix:
		return strings.HasSuffix(v, m.Suffix)
	case *mesh.StringPattern_Present:
		return m.Present && v != ""
	case *mesh.StringPattern_Template:
		return matchesTemplate(segments(m.Template), segments(v))
	}
	return false
}

func segments(path string) []string { return strings.Split(strings.TrimPrefix(path, "/"), "/") }

// matchesTemplate: {*} is one segment that is not empty, {**} any number of them.
func matchesTemplate(template, path []string) bool {
	// back is where the last {**} stands, and from where on it was tried.
	t, p, back, from := 0, 0, -1, 0
	for p < len(path) {
		switch {
		case t < len(template) && template[t] == "{**}":
			back, from = t, p
			t++
		case t < len(template) && (template[t] == path[p] || template[t] == "{*}" && path[p] != ""):
			t++
			p++
		case back >= 0:
			from++
			t, p = back+1, from
		default:
			return false
		}
	}
	for t < len(template) && template[t] == "{**}" {
		t++
	}
	return t == len(template)
}

func (j judge) names(has []string, wanted, unwanted []string) bool {
	contains := func(list []string) bool {
		for _, one := range list {
			if len(has) > 0 && one == has[0] {
				return true
			}
		}
		return false
	}
	return (len(wanted) == 0 || contains(wanted)) && (len(unwanted) == 0 || !contains(unwanted))
}

func (j judge) ports(wanted, unwanted []uint32) bool {
	if len(wanted)+len(unwanted) == 0 {
		return true
	}
	if j.Destination.Port() == 0 {
		return j.deny
	}
	contains := func(list []uint32) bool {
		for _, one := range list {
			if one == uint32(j.Destination.Port()) {
				return true
			}
		}
		return false
	}
	return (len(wanted) == 0 || contains(wanted)) && (len(unwanted) == 0 || !contains(unwanted))
}

func (j judge) addresses(wanted, unwanted []*mesh.AddressRange) bool {
	in := func(list []*mesh.AddressRange) (found, known bool) {
		for _, r := range list {
			addr, ok := netip.AddrFromSlice(r.GetAddress())
			if !ok || int(r.GetLength()) > addr.BitLen() {
				return false, false
			}
			prefix, err := addr.Unmap().Prefix(int(r.GetLength()))
			if err != nil {
				return false, false
			}
			found = found || prefix.Contains(j.Client)
		}
		return found, true
	}
	isWanted, known := in(wanted)
	isUnwanted, knownToo := in(unwanted)
	if !known || !knownToo {
		return j.deny
	}
	return (len(wanted) == 0 || isWanted) && (len(unwanted) == 0 || !isUnwanted)
}

// ranges judges an address by values that are addresses or CIDRs.
func (j judge) ranges(addr netip.Addr, c *mesh.RequestCondition) bool {
	in := func(list []*mesh.StringPattern) (found, known bool) {
		for _, p := range list {
			exact, ok := p.GetMatch().(*mesh.StringPattern_Exact)
			if !ok {
				return false, false
			}
			if one, err := netip.ParseAddr(exact.Exact); err == nil {
				found = found || one.Unmap() == addr
				continue
			}
			prefix, err := netip.ParsePrefix(exact.Exact)
			if err != nil {
				return false, false
			}
			found = found || prefix.Contains(addr)
		}
		return found, true
	}
	wanted, known := in(c.GetValues())
	unwanted, knownToo := in(c.GetNotValues())
	if !known || !knownToo {
		return j.deny
	}
	return (len(c.GetValues()) == 0 || wanted) && (len(c.GetNotValues()) == 0 || !unwanted)
}
