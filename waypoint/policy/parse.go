package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	cel "github.com/ambit-mesh/ambit/internal/condition"
	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// maxValues of one policy: each may be looked at for each request.
const maxValues = 65536

var errUnknownField = errors.New("has a field that is not known, which may narrow it")

// unknown tells whether a message says more than is understood here.
func unknown(m proto.Message) error {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return errUnknownField
	}
	return nil
}

// Parse reads a policy. With an error there is one all the same, which denies at least
// what was meant.
func Parse(in *mesh.RequestPolicy) (*Policy, error) {
	p := &Policy{Name: in.GetNamespace() + "/" + in.GetName(), DryRun: in.GetDryRun()}
	r := reader{}
	switch in.GetAction() {
	case mesh.RequestPolicy_ALLOW:
		p.Action = Allow
	case mesh.RequestPolicy_DENY:
		p.Action = Deny
	case mesh.RequestPolicy_CUSTOM:
		p.Action = Custom
		r.provider(&p.Provider, in.GetProvider())
	default:
		r.whole("action", fmt.Errorf("%s is not known", in.GetAction()))
	}
	if err := unknown(in); err != nil {
		r.whole("", err)
	}
	if in.GetInvalid() != "" {
		r.whole("", errors.New(in.GetInvalid()))
	}
	if proto.Size(in) > maxSize {
		r.whole("rules", fmt.Errorf("more than %d bytes", maxSize))
	}
	if !r.everything {
		for i, rule := range in.GetRules() {
			p.rules = append(p.rules, r.rule(rule, fmt.Sprintf("rules[%d]", i)))
		}
	}
	if r.values > maxValues {
		r.whole("rules", fmt.Errorf("more than %d values", maxValues))
	}
	if r.everything {
		p.Action, p.everything, p.rules = Deny, true, nil
	}
	p.Err = r.err
	return p, r.err
}

// maxSize of a policy on the wire: four times what an object in Kubernetes may have.
const maxSize = 6 << 20

// reader reads one policy. Of what is wrong it remembers the first.
type reader struct {
	err        error
	everything bool // nothing of the policy can be relied on
	values     int
}

func (r *reader) fail(field string, err error) {
	if r.err != nil {
		return
	}
	if r.err = err; field != "" {
		r.err = fmt.Errorf("%s: %w", field, err)
	}
}

func (r *reader) whole(field string, err error) {
	r.everything = true
	r.fail(field, err)
}

// maxTimeout of a provider: requests wait for it.
const maxTimeout = 5 * time.Second

// maxBody that a provider is told: it is held in memory until then.
const maxBody = 1 << 20

func (r *reader) provider(p *Provider, in *mesh.AuthorizationProvider) {
	p.Service, p.Port, p.Timeout, p.FailOpen = in.GetService(), uint16(in.GetPort()), in.GetTimeout().AsDuration(), in.GetFailOpen()
	p.MaxBody, p.PartialBody = int(min(in.GetMaxBody(), maxBody+1)), in.GetPartialBody()
	p.ContextExtensions, p.PeerCertificate = in.GetContextExtensions(), in.GetPeerCertificate()
	switch {
	case in == nil:
		r.whole("provider", errors.New("is missing"))
	case unknown(in) != nil:
		r.whole("provider", errUnknownField)
	case p.Service == "":
		r.whole("provider.service", errEmpty)
	case in.GetPort() == 0 || in.GetPort() > 65535:
		r.whole("provider.port", fmt.Errorf("%d, want 1 to 65535", in.GetPort()))
	case p.Timeout <= 0 || p.Timeout > maxTimeout:
		r.whole("provider.timeout", fmt.Errorf("%v, want more than 0 and at most %v", p.Timeout, maxTimeout))
	case p.MaxBody > maxBody:
		r.whole("provider.max_body", fmt.Errorf("%d, want at most %d", in.GetMaxBody(), maxBody))
	}
}

func (r *reader) rule(in *mesh.RequestRule, field string) (out rule) {
	if err := unknown(in); err != nil {
		r.fail(field, err)
		return rule{{{condition{}}}}
	}
	var from, to []match
	for i, s := range in.GetFrom() {
		from = append(from, r.source(s, fmt.Sprintf("%s.from[%d]", field, i)))
	}
	for i, o := range in.GetTo() {
		to = append(to, r.operation(o, fmt.Sprintf("%s.to[%d]", field, i)))
	}
	if from != nil {
		out = append(out, from)
	}
	if to != nil {
		out = append(out, to)
	}
	for i, w := range in.GetWhen() {
		out = append(out, []match{r.when(w, fmt.Sprintf("%s.when[%d]", field, i))})
	}
	if text := in.GetCondition(); text != "" {
		c := condition{kind: expression}
		var err error
		if c.expression, err = cel.Compile(text); err != nil {
			r.fail(field+".condition", err)
			c = condition{}
		}
		out = append(out, []match{{c}})
	}
	return out
}

func (r *reader) source(in *mesh.RequestSource, field string) (m match) {
	if err := unknown(in); err != nil {
		r.fail(field, err)
		m = append(m, condition{})
	}
	r.texts(&m, principals, in.GetPrincipals(), in.GetNotPrincipals(), field, "principals")
	r.texts(&m, namespaces, in.GetNamespaces(), in.GetNotNamespaces(), field, "namespaces")
	r.texts(&m, serviceAccounts, exactly(in.GetServiceAccounts()), exactly(in.GetNotServiceAccounts()), field, "service_accounts")
	r.blocks(&m, sourceIPs, in.GetIpBlocks(), in.GetNotIpBlocks(), field, "ip_blocks")
	r.blocks(&m, sourceIPs, in.GetRemoteIpBlocks(), in.GetNotRemoteIpBlocks(), field, "remote_ip_blocks")
	r.texts(&m, requestPrincipals, in.GetRequestPrincipals(), in.GetNotRequestPrincipals(), field, "request_principals")
	return m
}

func exactly(in []string) (out []*mesh.StringPattern) {
	for _, s := range in {
		out = append(out, &mesh.StringPattern{Match: &mesh.StringPattern_Exact{Exact: s}})
	}
	return out
}

func (r *reader) operation(in *mesh.RequestOperation, field string) (m match) {
	if err := unknown(in); err != nil {
		r.fail(field, err)
		m = append(m, condition{})
	}
	r.ports(&m, in.GetPorts(), false, field+".ports")
	r.ports(&m, in.GetNotPorts(), true, field+".not_ports")
	r.texts(&m, hosts, in.GetHosts(), in.GetNotHosts(), field, "hosts")
	r.texts(&m, methods, in.GetMethods(), in.GetNotMethods(), field, "methods")
	r.texts(&m, paths, in.GetPaths(), in.GetNotPaths(), field, "paths")
	return m
}

// list reads the values of a condition; those that cannot be read are told of and leave
// the condition unread.
func list[In, Out any](r *reader, c *condition, in []In, field string, parse func(In) (Out, error)) (out []Out) {
	r.values += len(in)
	for i, v := range in {
		value, err := parse(v)
		if err != nil {
			r.fail(fmt.Sprintf("%s[%d]", field, i), err)
			c.unread = true
			continue
		}
		out = append(out, value)
	}
	return out
}

func (r *reader) texts(m *match, k kind, values, not []*mesh.StringPattern, field, name string) {
	add := func(in []*mesh.StringPattern, negated bool, field string) {
		if len(in) > 0 {
			c := condition{kind: k, negated: negated}
			c.patterns = list(r, &c, in, field, func(p *mesh.StringPattern) (pattern, error) { return parsePattern(k, p) })
			*m = append(*m, c)
		}
	}
	add(values, false, field+"."+name)
	add(not, true, field+".not_"+name)
}

func (r *reader) blocks(m *match, k kind, values, not []*mesh.AddressRange, field, name string) {
	add := func(in []*mesh.AddressRange, negated bool, field string) {
		if len(in) > 0 {
			c := condition{kind: k, negated: negated}
			c.blocks = list(r, &c, in, field, parseBlock)
			*m = append(*m, c)
		}
	}
	add(values, false, field+"."+name)
	add(not, true, field+".not_"+name)
}

func parseBlock(in *mesh.AddressRange) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(in.GetAddress())
	switch {
	case !ok:
		return netip.Prefix{}, fmt.Errorf("address: %d bytes, want 4 or 16", len(in.GetAddress()))
	case unknown(in) != nil:
		return netip.Prefix{}, unknown(in)
	case in.GetLength() > uint32(addr.BitLen()):
		return netip.Prefix{}, fmt.Errorf("length: %d, want at most %d", in.GetLength(), addr.BitLen())
	}
	return block(netip.PrefixFrom(addr, int(in.GetLength())))
}

// block brings an IPv4 address in the form of IPv6 into that of connections.
func block(p netip.Prefix) (netip.Prefix, error) {
	const mapped = 96
	if p.Addr().Is4In6() {
		if p.Bits() < mapped {
			return p, fmt.Errorf("length: %d, want at least %d of an IPv4 address in the form of IPv6", p.Bits(), mapped)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p.Masked(), nil
}

func (r *reader) ports(m *match, in []uint32, negated bool, field string) {
	if len(in) == 0 {
		return
	}
	c := condition{kind: ports, negated: negated}
	c.ports = list(r, &c, in, field, func(port uint32) (uint16, error) {
		if port == 0 || port > 65535 {
			return 0, fmt.Errorf("%d, want 1 to 65535", port)
		}
		return uint16(port), nil
	})
	*m = append(*m, c)
}

// keys of conditions, and what they look at.
var keys = map[string]kind{
	"source.ip": sourceIPs, "source.namespace": namespaces, "source.principal": principals, "source.serviceAccount": serviceAccounts,
	"destination.ip": endpointIPs, "destination.port": ports, "remote.ip": sourceIPs,
	"request.auth.principal": requestPrincipals, "request.auth.audiences": audiences, "request.auth.presenter": presenter,
}

func (r *reader) when(in *mesh.RequestCondition, field string) (m match) {
	c := condition{kind: keys[in.GetKey()]}
	if name, ok := strings.CutPrefix(in.GetKey(), "request.headers["); ok && strings.HasSuffix(name, "]") {
		c.kind, c.name = fields, strings.ToLower(strings.TrimSuffix(name, "]"))
		if !http1.IsToken(c.name) || http1.OfConnection(c.name) {
			c.kind = unknownKind
		}
	}
	if names, ok := strings.CutPrefix(in.GetKey(), "request.auth.claims["); ok && strings.HasSuffix(names, "]") {
		c.kind, c.claim = claims, strings.Split(strings.TrimSuffix(names, "]"), "][")
	}
	switch {
	case unknown(in) != nil:
		r.fail(field, errUnknownField)
		return match{condition{}}
	case c.kind == unknownKind:
		r.fail(field+".key", fmt.Errorf("%q is not known to waypoints", in.GetKey()))
		return match{condition{}}
	case len(in.GetValues())+len(in.GetNotValues()) == 0:
		r.fail(field, errors.New("values, not_values: neither is set"))
		return match{condition{}}
	}
	if len(in.GetValues()) > 0 {
		m = append(m, r.condition(c, in.GetValues(), field+".values"))
	}
	if len(in.GetNotValues()) > 0 {
		c.negated = true
		m = append(m, r.condition(c, in.GetNotValues(), field+".not_values"))
	}
	return m
}

func (r *reader) condition(c condition, in []*mesh.StringPattern, field string) condition {
	switch c.kind {
	case sourceIPs, endpointIPs:
		c.blocks = list(r, &c, in, field, textBlock)
	case ports:
		c.ports = list(r, &c, in, field, textPort)
	default:
		c.patterns = list(r, &c, in, field, func(p *mesh.StringPattern) (pattern, error) { return parsePattern(c.kind, p) })
	}
	return c
}

func textBlock(in *mesh.StringPattern) (netip.Prefix, error) {
	text := in.GetExact()
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" && unknown(in) == nil {
		return block(netip.PrefixFrom(addr, addr.BitLen()))
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || unknown(in) != nil {
		return p, fmt.Errorf("%q is neither an address nor a CIDR", text)
	}
	return block(p)
}

func textPort(in *mesh.StringPattern) (uint16, error) {
	p, err := netip.ParseAddrPort("0.0.0.0:" + in.GetExact())
	if err != nil || p.Port() == 0 || unknown(in) != nil {
		return 0, fmt.Errorf("%q is no port", in.GetExact())
	}
	return p.Port(), nil
}
