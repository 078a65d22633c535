// Package route finds the rule that a request is carried out by: the routes attached to a
// Service, compiled once and asked for every request.
//
//	route.go    Compile, Match: which routes are there for a client, which rule is first
//	compile.go  rules and their matches -> entries, in the order of precedence
//	match.go    does an entry match a request
//
// Routes of the client's namespace (consumer routes) take the place of all others, for
// the ports that they are attached to. Where routes of several kinds are attached, those
// for gRPC go before those for HTTP, which then do not count. A request that no rule of
// the attached routes matches has none: that is a 404, never a way past them.
//
// Of several matches the first is, in this order, that of the exact path, the longest prefix, the longest regular expression, any path (of gRPC the
// longest service, then method); a method; the most fields; the most query parameters; the oldest
// route; the first route by namespace/name; the first in its route.
//
// Hostnames of routes mean nothing at a Service (GEP-1294).
//
// Invariants: pure; a Router never changes; what cannot be read of a match counts as
// matched, and then the request is answered with 500.
package route

import (
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/session"
)

// Router is the routes of one binding.
type Router struct {
	all       ports
	consumers map[string]ports
	// Problems name what could not be read.
	Problems []error
}

// ports are the routes attached to each port; 0 is what is attached to all.
type ports map[uint16]*table

// Rule says what becomes of a request.
type Rule struct {
	// Route is namespace/name; Name is the rule's, or empty.
	Route, Name string
	// Invalid, if not empty, is why it cannot be carried out: 500.
	Invalid  string
	Filters  *filter.Chain
	Backends []Backend
	weights  uint64
	// Session, if not nil, keeps a client's requests at one endpoint.
	Session *session.Persistence
	// RequestTimeout of all, BackendTimeout of each attempt; 0 for none.
	RequestTimeout, BackendTimeout time.Duration
	// Retries are further attempts, after the statuses in RetryOn or failures.
	Retries int
	RetryOn []int
	Backoff time.Duration
}

// Backend is a Service, with a share of the requests.
type Backend struct {
	Service string
	Port    uint16
	Invalid string
	Filters *filter.Chain
	weight  uint64
}

// Match is what was found.
type Match struct {
	// Attached: there are routes for this client and port. Without, the request is for
	// the Service itself.
	Attached bool
	// Rule is nil if there are routes and none of them matches.
	Rule *Rule
	// Invalid, if not empty, is what of the match could not be read.
	Invalid string
	// By is the match's path, for filters.
	By filter.Matched
}

// Match finds the rule for a request of a client in a namespace to the Service's port.
func (r *Router) Match(q *request.Request, namespace string, port uint16) Match {
	t := r.consumers[namespace].at(port)
	if t == nil {
		t = r.all.at(port)
	}
	if t == nil {
		return Match{}
	}
	m := Match{Attached: true, By: filter.Matched{Port: port}}
	if e := t.find(q); e != nil {
		m.Rule, m.Invalid = e.rule, e.invalid
		if e.path == prefixPath || e.path == anyPath {
			m.By.Prefix, m.By.HasPrefix = e.value, true
		}
	}
	return m
}

// at is the table of a port; nil if nothing is attached to it.
func (p ports) at(port uint16) *table {
	if t, ok := p[port]; ok {
		return t
	}
	return p[0]
}

// Pick chooses a backend by weights; below returns a number from 0 up to, not including,
// the one that it gets. Nil if no backend is to get requests.
func (r *Rule) Pick(below func(uint64) uint64) *Backend {
	if r.weights == 0 {
		return nil
	}
	n := below(r.weights)
	for i := range r.Backends {
		b := &r.Backends[i]
		if n < b.weight {
			return b
		}
		n -= b.weight
	}
	return nil
}

// OfSession is the backend that a session is with, if it still gets requests.
func (r *Rule) OfSession(t session.Token) *Backend {
	for i := range r.Backends {
		if b := &r.Backends[i]; b.weight > 0 && t.IsBackend(b.Service, b.Port) {
			return b
		}
	}
	return nil
}

// kinds in the order in which they take precedence.
var kinds = []mesh.Route_Kind{mesh.Route_GRPC, mesh.Route_HTTP}
