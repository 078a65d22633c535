package route

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// pathKind of a match, by its rank.
type pathKind uint8

const (
	anyPath pathKind = iota
	regexPath
	prefixPath
	exactPath
)

// matcher is one match of a rule.
type matcher struct {
	kind    pathKind
	path    string // exact, or a prefix without its last slash
	length  int    // of the path as it was written
	regex   *regexp.Regexp
	method  string
	headers []value
	query   []value
	grpc    bool
}

// value is of a header or of a parameter.
type value struct {
	name  string
	exact string
	regex *regexp.Regexp
}

// newMatcher reads a match. With an error it matches what could be read of it.
func newMatcher(m *mesh.RouteMatch, grpc bool) (matcher, error) {
	out := matcher{grpc: grpc}
	var err error
	if grpc {
		err = out.setGRPC(m.GetGrpc())
	} else {
		out.method = m.GetMethod()
		err = out.setPath(m.GetPath())
	}
	var err2, err3 error
	out.headers, err2 = values(m.GetHeaders())
	out.query, err3 = values(m.GetQueryParams())
	return out, cmp.Or(err, err2, err3)
}

func (m *matcher) setPath(p *mesh.PathMatch) (err error) {
	switch p := p.GetMatch().(type) {
	case *mesh.PathMatch_Exact:
		// Compared with what request has made of a path: the same is made of this.
		m.kind, m.length = exactPath, len(p.Exact)
		m.path, err = request.Path(p.Exact)
	case *mesh.PathMatch_Prefix:
		m.kind, m.length = prefixPath, len(p.Prefix)
		if m.path, err = request.Path(p.Prefix); m.path == "/" {
			m.kind = anyPath
		}
		m.path = strings.TrimSuffix(m.path, "/")
	case *mesh.PathMatch_Regex:
		m.kind, m.length = regexPath, len(p.Regex)
		m.regex, err = whole(p.Regex)
	}
	if err != nil {
		m.kind = anyPath // whatever it may have meant is refused
		return fmt.Errorf("path: %w", err)
	}
	return nil
}

// setGRPC makes a match of a path: /SERVICE/METHOD.
func (m *matcher) setGRPC(g *mesh.GRPCMethodMatch) (err error) {
	service, method := g.GetService(), g.GetMethod()
	m.length = len(service)<<8 + len(method)
	switch {
	case service == "" && method == "":
	case g.GetRegex():
		any := func(expression string) string { return "(?:" + orElse(expression, "[^/]+") + ")" }
		m.kind = regexPath
		m.regex, err = whole("/" + any(service) + "/" + any(method))
	case service != "" && method != "":
		m.kind, m.path = exactPath, "/"+service+"/"+method
	case service != "":
		m.kind, m.path = prefixPath, "/"+service
	default:
		m.kind = regexPath
		m.regex, err = whole("/[^/]+/" + regexp.QuoteMeta(method))
	}
	if err != nil {
		m.kind = anyPath
		return fmt.Errorf("grpc: %w", err)
	}
	return nil
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// whole is an expression that matches all of a value, or not at all.
func whole(expression string) (*regexp.Regexp, error) {
	return regexp.Compile(`\A(?:` + expression + `)\z`)
}

func values(in []*mesh.ValueMatch) (out []value, err error) {
	for _, m := range in {
		v := value{name: m.GetName(), exact: m.GetExact()}
		if r, ok := m.GetMatch().(*mesh.ValueMatch_Regex); ok {
			compiled, failed := whole(r.Regex)
			if failed != nil {
				err = fmt.Errorf("%s: %w", m.GetName(), failed)
				continue
			}
			v.regex = compiled
		}
		out = append(out, v)
	}
	return out, err
}

func (v *value) matches(text string) bool {
	if v.regex != nil {
		return v.regex.MatchString(text)
	}
	return text == v.exact
}

// compare is positive if m goes before o.
func (m *matcher) compare(o *matcher) int {
	return cmp.Or(
		cmp.Compare(m.kind, o.kind),
		cmp.Compare(m.length, o.length),
		cmp.Compare(presence(m.method), presence(o.method)),
		cmp.Compare(len(m.headers), len(o.headers)),
		cmp.Compare(len(m.query), len(o.query)),
	)
}

func presence(text string) int { return min(len(text), 1) }

// matches tells whether a request has it, and the prefix that its path has.
func (m *matcher) matches(r *request.Request) (prefix string, ok bool) {
	switch m.kind {
	case exactPath:
		ok = r.Path == m.path
	case prefixPath:
		rest, begins := strings.CutPrefix(r.Path, m.path)
		ok, prefix = begins && (rest == "" || rest[0] == '/'), m.path
	case regexPath:
		ok = m.regex.MatchString(r.Path)
	default:
		ok, prefix = true, "/"
	}
	if !ok || m.method != "" && m.method != r.Method || m.grpc && !isGRPC(r) {
		return "", false
	}
	for i := range m.headers {
		if !m.headers[i].ofField(r) {
			return "", false
		}
	}
	for i := range m.query {
		if !m.query[i].ofQuery(r.Query) {
			return "", false
		}
	}
	return prefix, true
}

// isGRPC: routes for GRPC are for nothing else.
func isGRPC(r *request.Request) (is bool) {
	r.Values("content-type", func(v string) bool {
		is = strings.HasPrefix(v, "application/grpc")
		return false
	})
	return is && r.Method == "POST"
}

// ofField matches all that a field says, its lines put together: RFC 9110 section 5.3.
func (v *value) ofField(r *request.Request) bool {
	if v.name == "host" || v.name == ":authority" {
		return v.matches(r.Authority())
	}
	text, found := "", false
	r.Values(v.name, func(line string) bool {
		if found {
			line = text + "," + line
		}
		text, found = line, true
		return true
	})
	return found && v.matches(text)
}

// ofQuery matches the first parameter of the name.
func (v *value) ofQuery(query string) bool {
	for pair := range strings.SplitSeq(strings.TrimPrefix(query, "?"), "&") {
		name, text, _ := strings.Cut(pair, "=")
		if unescape(name) == v.name {
			return v.matches(unescape(text))
		}
	}
	return false
}

// unescape reads an encoded name or value; what is no encoding stays as it is.
func unescape(text string) string {
	if !strings.ContainsAny(text, "%+") {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '+':
			out = append(out, ' ')
		case c == '%' && i+2 < len(text) && hex(text[i+1]) < 16 && hex(text[i+2]) < 16:
			out = append(out, hex(text[i+1])<<4|hex(text[i+2]))
			i += 2
		default:
			out = append(out, c)
		}
	}
	return string(out)
}

func hex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
