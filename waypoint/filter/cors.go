package filter

import (
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Preflight is the answer to a browser that asks beforehand; false of other requests.
func Preflight(r *request.Request, c *mesh.CORS) (fields []http1.Field, is bool) {
	wanted, asks := first(r, "access-control-request-method")
	origin, named := first(r, "origin")
	if r.Method != "OPTIONS" || !asks || !named {
		return nil, false
	}
	fields, ok := origins(origin, c)
	if !ok {
		return nil, true
	}
	add := func(name string, values []string, asked string) {
		list := strings.Join(values, ", ")
		if list == "*" && c.GetAllowCredentials() {
			list = asked // the star would be taken for a name
		}
		if list != "" {
			fields = append(fields, http1.Field{Name: name, Value: list})
		}
	}
	headers, _ := first(r, "access-control-request-headers")
	add("access-control-allow-methods", c.GetAllowMethods(), wanted)
	add("access-control-allow-headers", c.GetAllowHeaders(), headers)
	if c.GetMaxAge() != nil {
		fields = append(fields, http1.Field{Name: "access-control-max-age", Value: strconv.FormatInt(int64(c.GetMaxAge().AsDuration().Seconds()), 10)})
	}
	return fields, true
}

// CORSResponse are the fields of a response to a request from a page.
func CORSResponse(r *request.Request, c *mesh.CORS) []http1.Field {
	origin, named := first(r, "origin")
	if !named {
		return nil
	}
	fields, ok := origins(origin, c)
	if !ok {
		return nil
	}
	if expose := strings.Join(c.GetExposeHeaders(), ", "); expose != "" {
		fields = append(fields, http1.Field{Name: "access-control-expose-headers", Value: expose})
	}
	return fields
}

// origins says that a page's origin is let see.
func origins(origin string, c *mesh.CORS) ([]http1.Field, bool) {
	for _, allowed := range c.GetAllowOrigins() {
		if !originMatches(origin, allowed) {
			continue
		}
		value := origin
		if allowed == "*" && !c.GetAllowCredentials() {
			value = "*"
		}
		fields := []http1.Field{{Name: "access-control-allow-origin", Value: value}}
		if value != "*" {
			fields = append(fields, http1.Field{Name: "vary", Value: "origin"})
		}
		if c.GetAllowCredentials() {
			fields = append(fields, http1.Field{Name: "access-control-allow-credentials", Value: "true"})
		}
		return fields, true
	}
	return nil, false
}

func originMatches(origin, allowed string) bool {
	if allowed == "*" || strings.EqualFold(origin, allowed) {
		return true
	}
	scheme, host, _ := strings.Cut(allowed, "://")
	suffix, wildcard := strings.CutPrefix(host, "*")
	rest, same := strings.CutPrefix(strings.ToLower(origin), strings.ToLower(scheme)+"://")
	return wildcard && same && len(rest) > len(suffix) && strings.HasSuffix(rest, strings.ToLower(suffix))
}

func first(r *request.Request, name string) (value string, found bool) {
	r.Values(name, func(v string) bool {
		value, found = v, true
		return false
	})
	return value, found
}
