package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	cel "github.com/ambit-mesh/ambit/internal/condition"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// answer to whether a request is what a value says.
type answer uint8

const (
	no answer = iota
	yes
	// unsure: the value, or what it is compared with, is not understood.
	unsure
	// later: it depends on an endpoint, and none is chosen yet.
	later
)

// rule is what all must match: each of its parts by one of its matches.
type rule [][]match

// match is conditions that all must hold.
type match []condition

// condition is the values of one kind, of which one must be so, or none if negated.
type condition struct {
	kind    kind
	negated bool
	// unread: there are values that could not be read.
	unread bool

	patterns []pattern
	blocks   []netip.Prefix
	ports    []uint16
	// name of a field, names that lead to a claim.
	name  string
	claim []string
	// expression is all of it, if it is one.
	expression *cel.Condition
}

// kind is what a condition looks at.
type kind uint8

const (
	// unknownKind: the condition as a whole could not be read.
	unknownKind kind = iota
	principals
	namespaces
	serviceAccounts
	sourceIPs
	requestPrincipals
	audiences
	presenter
	claims
	ports
	endpointIPs
	hosts
	methods
	paths
	fields
	expression
)

func (p *Policy) matches(s *Subject) bool {
	if p.everything {
		return true
	}
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.matches(s, p.Action) })
}

func (r rule) matches(s *Subject, action Action) bool {
	for _, part := range r {
		if !slices.ContainsFunc(part, func(m match) bool { return m.matches(s, action) }) {
			return false
		}
	}
	return true
}

func (m match) matches(s *Subject, action Action) bool {
	for i := range m {
		if !m[i].holds(s, action) {
			return false
		}
	}
	return len(m) > 0
}

// holds takes what nobody can say for what denies more. All that is built on top of
// conditions only grows with them, so that this is enough.
func (c *condition) holds(s *Subject, action Action) bool {
	found := c.anyOf(s)
	if found == no && c.unread {
		found = unsure
	}
	switch found {
	case yes:
		return !c.negated
	case no:
		return c.negated
	case later:
		return action == Allow
	}
	return action != Allow
}

// anyOf answers whether one of the values is so.
func (c *condition) anyOf(s *Subject) answer {
	switch c.kind {
	case sourceIPs:
		return c.contains(s.Client)
	case principals, namespaces, serviceAccounts:
		return c.identity(s)
	case ports, endpointIPs:
		switch {
		case !s.Endpoint.IsValid():
			return later
		case c.kind == endpointIPs:
			return c.contains(s.Endpoint.Addr())
		case s.Endpoint.Port() == 0:
			return unsure
		case slices.Contains(c.ports, s.Endpoint.Port()):
			return yes
		}
		return no
	case requestPrincipals, audiences, presenter, claims:
		return c.token(s)
	case expression:
		return evaluate(c.expression, s)
	}
	if s.Request == nil {
		return unsure
	}
	switch c.kind {
	case hosts:
		return max(c.text(s.Request.Host), c.withPort(s.Request))
	case methods:
		return c.text(s.Request.Method)
	case paths:
		return c.path(request.Plain(s.Request.Path))
	case fields:
		return c.field(s)
	}
	return unsure
}

func (c *condition) contains(addr netip.Addr) answer {
	if !addr.IsValid() {
		return unsure
	}
	addr = addr.Unmap().WithZone("")
	if slices.ContainsFunc(c.blocks, func(b netip.Prefix) bool { return b.Contains(addr) }) {
		return yes
	}
	return no
}

// text answers whether one of the patterns is like it.
func (c *condition) text(s string) answer {
	if !utf8.ValidString(s) {
		return unsure
	}
	for i := range c.patterns {
		if c.patterns[i].matches(s) {
			return yes
		}
	}
	return no
}

// withPort compares the host with values that have a port.
func (c *condition) withPort(r *request.Request) answer {
	if !slices.ContainsFunc(c.patterns, func(p pattern) bool { return strings.Contains(p.value, ":") }) {
		return no
	}
	port := r.Port
	if port == 0 {
		port = request.DefaultPort
	}
	return c.text(r.Host + ":" + strconv.Itoa(int(port)))
}

// path of OPTIONS may be *, which stands for all of them: what is said of the root, and of
// all below it, may be meant for it.
func (c *condition) path(path string) answer {
	found := c.text(path)
	if path == "*" && found == no && c.text("/") == yes {
		return unsure
	}
	return found
}

func (c *condition) identity(s *Subject) answer {
	id := s.Identity
	switch {
	case id.IsZero():
		return no
	case id.TrustDomain == "" || id.Namespace == "" || id.ServiceAccount == "":
		return unsure
	case c.kind == namespaces:
		return c.text(id.Namespace)
	case c.kind == serviceAccounts:
		return c.text(id.Namespace + "/" + id.ServiceAccount)
	}
	return c.text(id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount)
}

// field looks at every value of a field of the request.
func (c *condition) field(s *Subject) answer {
	var some answers
	for value := range values(s, c.name) {
		whole := c.text(value)
		if whole != no || !strings.Contains(value, ",") {
			some.add(whole)
			continue
		}
		for element := range strings.SplitSeq(value, ",") {
			some.add(c.text(strings.Trim(element, " \t")))
		}
	}
	return some.all()
}

func values(s *Subject, name string) func(func(string) bool) {
	return func(yield func(string) bool) { s.Request.Values(name, yield) }
}

// answers of several values of one field.
type answers struct{ yes, no, unsure bool }

func (a *answers) add(one answer) {
	a.yes, a.no, a.unsure = a.yes || one == yes, a.no || one == no, a.unsure || one == unsure
}

// all is yes if all are, no if none is or there are none.
func (a *answers) all() answer {
	switch {
	case a.unsure || a.yes && a.no:
		return unsure
	case a.yes:
		return yes
	}
	return no
}

// token looks at what was verified of the request's token. Of a claim that is a list one
// element is enough: that is what lists in tokens are for.
func (c *condition) token(s *Subject) answer {
	if s.Claims == nil {
		return no
	}
	switch c.kind {
	case requestPrincipals:
		if s.Claims.Issuer == "" || s.Claims.Subject == "" {
			return no
		}
		return c.text(s.Claims.Issuer + "/" + s.Claims.Subject)
	case audiences:
		return c.oneOf(s.Claims.Audiences)
	case presenter:
		if s.Claims.Presenter == "" {
			return no
		}
		return c.text(s.Claims.Presenter)
	}
	var value any = s.Claims.All
	for _, name := range c.claim {
		object, ok := value.(map[string]any)
		if !ok {
			return unsure
		}
		if value, ok = object[name]; !ok {
			return no
		}
	}
	switch v := value.(type) {
	case string:
		if spaced := len(c.claim) == 1 && (c.claim[0] == "scope" || c.claim[0] == "permission"); spaced && strings.Contains(v, " ") {
			return max(c.text(v), c.oneOf(strings.Fields(v))) // RFC 8693 section 4.2: a list
		}
		return c.text(v)
	case []any:
		list := make([]string, 0, len(v))
		for _, element := range v {
			text, ok := element.(string)
			if !ok {
				return unsure
			}
			list = append(list, text)
		}
		return c.oneOf(list)
	}
	return unsure
}

func (c *condition) oneOf(list []string) answer {
	found := no
	for _, v := range list {
		switch c.text(v) {
		case yes:
			return yes
		case unsure:
			found = unsure
		}
	}
	return found
}
