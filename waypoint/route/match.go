package route

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/request"
)

// pathKind in the order of precedence.
type pathKind uint8

const (
	exactPath pathKind = iota
	prefixPath
	regexPath
	anyPath // the prefix /
)

// entry is one match of a rule.
type entry struct {
	rule    *Rule
	invalid string

	path   pathKind
	value  string // of a prefix without a slash at its end
	regex  *regexp.Regexp
	method string
	// headers and query parameters, all of which must match.
	headers, query []value

	grpc bool
	// lengths of the service and the method, of gRPC.
	lengths [2]int
	created int64
	order   [2]int // of the rule in its route, of the match in its rule
}

// value is what a header or a query parameter must be.
type value struct {
	name, exact string
	isRegex     bool
	regex       *regexp.Regexp // nil if it could not be read
}

func (v *value) matches(s string) bool {
	if v.isRegex {
		return v.regex == nil || v.regex.MatchString(s)
	}
	return s == v.exact
}

// table is entries in the order of precedence, and where to look for them.
type table struct {
	entries       []*entry
	exact, prefix map[string][]int
	regex         []int
}

// find returns the first entry that matches; nil if none does.
func (t *table) find(q *request.Request) *entry {
	best := len(t.entries)
	look := func(list []int) {
		for _, i := range list {
			if i >= best {
				return
			}
			if t.entries[i].matches(q) {
				best = i
				return
			}
		}
	}
	look(t.exact[q.Path])
	look(t.regex)
	for prefix := strings.TrimSuffix(q.Path, "/"); ; {
		look(t.prefix[prefix])
		i := strings.LastIndexByte(prefix, '/')
		if i < 0 {
			break
		}
		prefix = prefix[:i]
	}
	if q.Path == "*" {
		look(t.prefix[""])
	}
	if best == len(t.entries) {
		return nil
	}
	return t.entries[best]
}

// matches tells whether an entry does, by its path or by what it was found by.
func (e *entry) matches(q *request.Request) bool {
	if e.grpc && !isGRPC(q) || e.method != "" && e.method != q.Method {
		return false
	}
	if e.path == regexPath && e.regex != nil && !e.regex.MatchString(q.Path) {
		return false
	}
	for i := range e.headers {
		if !e.headers[i].inFields(q) {
			return false
		}
	}
	for i := range e.query {
		if !e.query[i].inQuery(q.Query) {
			return false
		}
	}
	return true
}

// inFields looks at all that a field says, its lines put together: RFC 9110 section 5.3.
func (v *value) inFields(q *request.Request) bool {
	if v.name == "host" {
		return v.matches(q.Authority())
	}
	text, found := "", false
	q.Values(v.name, func(line string) bool {
		if found {
			line = text + "," + line
		}
		text, found = line, true
		return true
	})
	return found && v.matches(text)
}

// isGRPC: routes for gRPC are for nothing else.
func isGRPC(q *request.Request) (is bool) {
	q.Values("content-type", func(got string) bool {
		is = got == "application/grpc" || strings.HasPrefix(got, "application/grpc+") || strings.HasPrefix(got, "application/grpc;")
		return false
	})
	return is && q.Method == "POST"
}

// inQuery looks at the first parameter of the name.
func (v *value) inQuery(query string) bool {
	query = strings.TrimPrefix(query, "?")
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		name, got, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(name); err != nil || name != v.name {
			continue
		}
		got, err := url.QueryUnescape(got)
		return err == nil && v.matches(got)
	}
	return false
}
