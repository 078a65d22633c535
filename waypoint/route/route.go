// Package route finds the rule by which a request goes on.
//
//	route.go  Compile: routes attached to a Service -> Table; Table.Decide
//	match.go  one match of a rule
//
// The routes of the client's own namespace (consumer routes), where there are any, take
// the place of all others. Of the matches that a request has, in this order (the Gateway
// API's specification of HTTPRouteRule and GRPCRouteRule): the longest exact hostname,
// the longest with a wildcard, none; the exact path, the longest prefix, an expression,
// any path; one with a method; the most headers; the most parameters of the query; the
// oldest route; the first by namespace and name; the first in the route. A route for
// GRPC has a service and a method in place of a path.
//
// Invariants: Decide is pure; what no rule matches is answered with 404, never passed
// on; a rule that cannot be read matches what it can be read to match, and is invalid.
//
// What a rule does with a request is filter's, where it goes the asker's.
package route

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Table is the routes of one Service, in the order in which they are tried.
type Table struct {
	// producers are the Service's own, consumers those of other namespaces, by these.
	producers []entry
	consumers map[string][]entry
}

// entry is one match of a rule.
type entry struct {
	route    *mesh.Route
	rule     *mesh.RouteRule
	match    matcher
	hostname string
	index    int // of the rule
	invalid  string
}

// Match is the rule that a request has.
type Match struct {
	Route *mesh.Route
	Rule  *mesh.RouteRule
	// Prefix that matched its path; empty if it was not a prefix.
	Prefix string
	// Invalid says why the rule cannot be carried out, if it cannot.
	Invalid string
}

// Name of the route: namespace/name.
func (m *Match) Name() string { return m.Route.GetNamespace() + "/" + m.Route.GetName() }

// Compile makes a Table.
func Compile(routes []*mesh.Route) *Table {
	t := &Table{consumers: map[string][]entry{}}
	for _, r := range routes {
		if r.GetKind() != mesh.Route_HTTP && r.GetKind() != mesh.Route_GRPC {
			continue
		}
		entries := compile(r)
		if r.GetConsumer() {
			t.consumers[r.GetNamespace()] = append(t.consumers[r.GetNamespace()], entries...)
		} else {
			t.producers = append(t.producers, entries...)
		}
	}
	slices.SortStableFunc(t.producers, compare)
	for _, list := range t.consumers {
		slices.SortStableFunc(list, compare)
	}
	return t
}

func compile(r *mesh.Route) (out []entry) {
	hostnames := r.GetHostnames()
	if len(hostnames) == 0 {
		hostnames = []string{""}
	}
	for index, rule := range r.GetRules() {
		matches := rule.GetMatches()
		if len(matches) == 0 {
			matches = []*mesh.RouteMatch{{}}
		}
		for _, m := range matches {
			e := entry{route: r, rule: rule, index: index, invalid: rule.GetInvalid()}
			var err error
			if e.match, err = newMatcher(m, r.GetKind() == mesh.Route_GRPC); err != nil && e.invalid == "" {
				e.invalid = err.Error()
			}
			for _, hostname := range hostnames {
				e.hostname = hostname
				out = append(out, e)
			}
		}
	}
	return out
}

// compare puts what goes first before the rest.
func compare(a, b entry) int {
	return cmp.Or(
		-cmp.Compare(hostRank(a.hostname), hostRank(b.hostname)),
		-a.match.compare(&b.match),
		cmp.Compare(a.route.GetCreated(), b.route.GetCreated()),
		cmp.Compare(a.route.GetNamespace(), b.route.GetNamespace()),
		cmp.Compare(a.route.GetName(), b.route.GetName()),
		cmp.Compare(a.index, b.index),
	)
}

// hostRank: an exact name is before any wildcard, and a longer one before a shorter.
func hostRank(hostname string) int {
	const exact = 1 << 10 // names are shorter
	switch {
	case hostname == "":
		return 0
	case strings.HasPrefix(hostname, "*."):
		return len(hostname)
	}
	return exact + len(hostname)
}

// Decide finds the rule for a request to a port of the Service, by a client of a
// namespace. attached tells whether there are any routes for it: if not, it goes where
// it was addressed to; if there are, and none matches, nowhere.
func (t *Table) Decide(r *request.Request, port uint16, namespace string) (m Match, matched, attached bool) {
	list := t.producers
	if own := t.consumers[namespace]; slices.ContainsFunc(own, func(e entry) bool { return e.isFor(port) }) {
		list = own
	}
	for i := range list {
		e := &list[i]
		if !e.isFor(port) {
			continue
		}
		attached = true
		if !hostMatches(e.hostname, r.Host) {
			continue
		}
		if prefix, ok := e.match.matches(r); ok {
			return Match{Route: e.route, Rule: e.rule, Prefix: prefix, Invalid: e.invalid}, true, true
		}
	}
	return Match{}, false, attached
}

func (e *entry) isFor(port uint16) bool {
	return e.route.GetPort() == 0 || e.route.GetPort() == uint32(port)
}

func hostMatches(hostname, host string) bool {
	suffix, wildcard := strings.CutPrefix(hostname, "*")
	switch {
	case hostname == "":
		return true
	case wildcard:
		return len(host) > len(suffix) && strings.HasSuffix(host, suffix)
	}
	return host == hostname
}
