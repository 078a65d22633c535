package authz

import (
	"net/netip"
	"slices"
	"unicode/utf8"
)

// maxPrincipal is the longest identity there is: three names of Kubernetes, of 253,
// 63 and 253 characters, and what stands between them.
const maxPrincipal = 253 + len("/ns/") + 63 + len("/sa/") + 253

// subject is a connection as conditions look at it.
type subject struct {
	*Connection
	// principal is the identity without spiffe://; empty if there is none.
	principal []byte
	// unreadable: there is an identity, but it is none that can be compared.
	unreadable bool
}

// subjectOf uses the buffer, which is large enough for every identity there is.
func subjectOf(c *Connection, buffer []byte) subject {
	s := subject{Connection: c}
	id := &c.Identity
	if id.IsZero() {
		return s
	}
	for _, part := range [...]string{id.TrustDomain, "/ns/", id.Namespace, "/sa/", id.ServiceAccount} {
		buffer = append(buffer, part...)
	}
	s.principal = buffer
	s.unreadable = id.TrustDomain == "" || id.Namespace == "" || id.ServiceAccount == "" || !utf8.Valid(buffer)
	return s
}

// answer to whether a connection is what a value says.
type answer uint8

const (
	no answer = iota
	yes
	// unsure: the value, or what it is compared with, is not understood.
	unsure
)

func answerOf(b bool) answer {
	if b {
		return yes
	}
	return no
}

// rule is clauses that all must match.
type rule []clause

// clause is matches of which one must match.
type clause []match

// match is conditions that all must hold.
type match []condition

// condition is the values of one kind, of which one must be so, or none if negated.
type condition struct {
	kind    kind
	negated bool
	// unread: there are values that could not be read.
	unread bool

	texts    []text
	accounts []account
	blocks   []netip.Prefix
	ports    []uint16
}

// kind is what a condition looks at.
type kind uint8

const (
	// unknownKind: the condition as a whole could not be read.
	unknownKind kind = iota
	namespaces
	principals
	serviceAccounts
	sourceIPs
	destinationIPs
	destinationPorts
)

// account is a service account.
type account struct{ namespace, name string }

// text is a value that a string is compared with.
type text struct {
	how   comparison
	value string
}

type comparison uint8

const (
	exact comparison = iota
	prefix
	suffix
	presence
)

func (t *text) matches(b []byte) bool {
	switch t.how {
	case exact:
		return string(b) == t.value
	case prefix:
		return len(b) >= len(t.value) && string(b[:len(t.value)]) == t.value
	case suffix:
		return len(b) >= len(t.value) && string(b[len(b)-len(t.value):]) == t.value
	}
	return true // presence, and there is something
}

func (p *Policy) matches(s *subject) bool {
	if p.everything {
		return true
	}
	for _, r := range p.rules {
		if r.matches(s, p.Action) {
			return true
		}
	}
	return false
}

func (r rule) matches(s *subject, action Action) bool {
	for _, c := range r {
		if !c.matches(s, action) {
			return false
		}
	}
	return true
}

func (c clause) matches(s *subject, action Action) bool {
	for _, m := range c {
		if m.matches(s, action) {
			return true
		}
	}
	return len(c) == 0
}

func (m match) matches(s *subject, action Action) bool {
	for i := range m {
		if !m[i].holds(s, action) {
			return false
		}
	}
	return len(m) > 0
}

// holds takes what nobody can say for what denies more. All that is built on top of
// conditions, a policy and a decision, only grows with them, so that this is enough.
func (c *condition) holds(s *subject, action Action) bool {
	switch c.anyOf(s) {
	case yes:
		return !c.negated
	case no:
		return c.negated
	}
	return action == Deny
}

// anyOf answers whether one of the values is so.
func (c *condition) anyOf(s *subject) answer {
	found := c.anyRead(s)
	if found == no && c.unread {
		return unsure
	}
	return found
}

func (c *condition) anyRead(s *subject) answer {
	switch c.kind {
	case namespaces, principals, serviceAccounts:
		switch {
		case s.unreadable:
			return unsure
		case len(s.principal) == 0:
			return no
		}
		return answerOf(c.identityMatches(s))
	case sourceIPs:
		return c.contains(s.Client)
	case destinationIPs:
		return c.contains(s.Destination.Addr())
	case destinationPorts:
		if s.Destination.Port() == 0 {
			return unsure
		}
		return answerOf(slices.Contains(c.ports, s.Destination.Port()))
	}
	return unsure
}

func (c *condition) identityMatches(s *subject) bool {
	if c.kind == serviceAccounts {
		return slices.Contains(c.accounts, account{s.Identity.Namespace, s.Identity.ServiceAccount})
	}
	against := s.principal
	if c.kind == namespaces {
		// The principal is made of the identity's parts.
		begin := len(s.Identity.TrustDomain) + len("/ns/")
		against = against[begin : begin+len(s.Identity.Namespace)]
	}
	for i := range c.texts {
		if c.texts[i].matches(against) {
			return true
		}
	}
	return false
}

func (c *condition) contains(addr netip.Addr) answer {
	if !addr.IsValid() {
		return unsure
	}
	addr = addr.Unmap().WithZone("")
	for _, block := range c.blocks {
		if block.Contains(addr) {
			return yes
		}
	}
	return no
}
