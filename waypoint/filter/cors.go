package filter

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// cors says who may read responses across origins.
type cors struct {
	origins                  []allowedOrigin
	methods, headers, expose []string
	credentials              bool
	maxAge                   int64 // seconds
}

// defaultMaxAge of what a preflight says: the API's.
const defaultMaxAge = 5

func compileCORS(in *mesh.CORS) (*cors, error) {
	c := &cors{
		methods: in.GetAllowMethods(), headers: in.GetAllowHeaders(), expose: in.GetExposeHeaders(),
		credentials: in.GetAllowCredentials(), maxAge: defaultMaxAge,
	}
	if in.GetMaxAge() != nil {
		if c.maxAge = in.GetMaxAge().GetSeconds(); c.maxAge < 0 {
			return nil, fmt.Errorf("max_age: %d s", c.maxAge)
		}
	}
	for i, origin := range in.GetAllowOrigins() {
		scheme, host, port, ok := splitOrigin(strings.ToLower(origin))
		suffix, wild := strings.CutPrefix(host, "*")
		if origin != "*" && (!ok || strings.Contains(suffix, "*")) {
			return nil, fmt.Errorf("allow_origins[%d]: %q, want * or scheme://host with * at the host's beginning", i, origin)
		}
		c.origins = append(c.origins, allowedOrigin{all: origin == "*", scheme: scheme, host: suffix, port: port, wild: wild})
	}
	for field, list := range map[string][]string{"allow_methods": c.methods, "allow_headers": c.headers, "expose_headers": c.expose} {
		for i, name := range list {
			if !http1.IsToken(name) {
				return nil, fmt.Errorf("%s[%d]: %q", field, i, name)
			}
		}
	}
	return c, nil
}

// allowedOrigin is one that is, or many: all of them, or with wild all whose host ends so.
type allowedOrigin struct {
	all                bool
	scheme, host, port string
	wild               bool
}

// splitOrigin reads scheme://host:port; a port that is not there is the scheme's own.
func splitOrigin(origin string) (scheme, host, port string, ok bool) {
	scheme, host, ok = strings.Cut(origin, "://")
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host, port = host[:i], host[i+1:]
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return scheme, host, port, ok && scheme != "" && host != ""
}

// origin of a request, if it has exactly one.
func origin(seen *request.Request) string {
	var found string
	n := 0
	for value := range one(seen, "origin") {
		found = value
		n++
	}
	if n != 1 {
		return ""
	}
	return found
}

func one(seen *request.Request, name string) func(func(string) bool) {
	return func(yield func(string) bool) { seen.Values(name, yield) }
}

func (c *cors) allows(origin string) bool {
	scheme, host, port, ok := splitOrigin(strings.ToLower(origin))
	return origin != "" && slices.ContainsFunc(c.origins, func(a allowedOrigin) bool {
		switch {
		case a.all:
			return true
		case !ok || scheme != a.scheme || port != a.port:
			return false
		case a.wild:
			return len(host) > len(a.host) && strings.HasSuffix(host, a.host)
		}
		return host == a.host
	})
}

// any tells whether every origin is allowed.
func (c *cors) any() bool {
	return slices.ContainsFunc(c.origins, func(a allowedOrigin) bool { return a.all })
}

// preflight answers one: with nothing of CORS, if the origin is not allowed.
func (c *cors) preflight(seen *request.Request) *Answer {
	var method, headers string
	for value := range one(seen, "access-control-request-method") {
		method = value
	}
	for value := range one(seen, "access-control-request-headers") {
		headers = value
	}
	o := origin(seen)
	if seen.Method != http.MethodOptions || o == "" || method == "" {
		return nil
	}
	a := &Answer{Status: http.StatusOK}
	if !c.allows(o) {
		return a
	}
	a.Fields = c.who(o)
	if list := c.list(c.methods, method); list != "" {
		a.Fields = append(a.Fields, http1.Field{Name: "access-control-allow-methods", Value: list})
	}
	if list := c.list(c.headers, headers); list != "" {
		a.Fields = append(a.Fields, http1.Field{Name: "access-control-allow-headers", Value: list})
	}
	a.Fields = append(a.Fields, http1.Field{Name: "access-control-max-age", Value: strconv.FormatInt(c.maxAge, 10)})
	a.Fields = append(a.Fields, c.exposed()...)
	return a
}

// list writes names; * is taken literally by browsers that send credentials, so that it
// is answered with what was asked for.
func (c *cors) list(names []string, asked string) string {
	if slices.Contains(names, "*") {
		if c.credentials {
			return asked
		}
		return "*"
	}
	return strings.Join(names, ", ")
}

func (c *cors) who(o string) []http1.Field {
	if !c.credentials && c.any() {
		return []http1.Field{{Name: "access-control-allow-origin", Value: "*"}}
	}
	fields := []http1.Field{{Name: "access-control-allow-origin", Value: o}, {Name: "vary", Value: "origin"}}
	if c.credentials {
		fields = append(fields, http1.Field{Name: "access-control-allow-credentials", Value: "true"})
	}
	return fields
}

// actual replaces what the endpoint says of CORS.
func (c *cors) actual(seen *request.Request, fields []http1.Field) []http1.Field {
	o := origin(seen)
	if o == "" {
		return fields
	}
	out := make([]http1.Field, 0, len(fields)+4)
	for _, f := range fields {
		if !strings.HasPrefix(f.Name, "access-control-") {
			out = append(out, f)
		}
	}
	if !c.allows(o) {
		return out
	}
	return append(append(out, c.who(o)...), c.exposed()...)
}

// exposed are the fields that scripts may read; * would be taken literally with credentials.
func (c *cors) exposed() []http1.Field {
	names := c.expose
	if c.credentials {
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "*" })
	}
	if len(names) == 0 {
		return nil
	}
	return []http1.Field{{Name: "access-control-expose-headers", Value: strings.Join(names, ", ")}}
}
