package translate

import (
	"fmt"
	"hash/fnv"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/mesh"
)

// httpRules converts the rules of an HTTPRoute. One without rules matches
// everything, and has nowhere to send it.
func (c *routeConversion) httpRules(rules []gateway.HTTPRouteRule) (out []*mesh.RouteRule) {
	for i, in := range rules {
		c.rules++
		field := fmt.Sprintf("spec.rules[%d]", i)
		rule := &mesh.RouteRule{Name: sectionName(in.Name)}
		for j, m := range in.Matches {
			rule.Matches = append(rule.Matches, c.httpMatch(rule, fmt.Sprintf("%s.matches[%d]", field, j), m))
		}
		rule.Filters = c.httpFilters(rule, field+".filters", in.Filters)
		for j, ref := range in.BackendRefs {
			backendField := fmt.Sprintf("%s.backendRefs[%d]", field, j)
			backend := c.backend(backendField, ref.BackendRef)
			backend.Filters = c.httpFilters(rule, backendField+".filters", ref.Filters)
			rule.Backends = append(rule.Backends, backend)
		}
		if t := in.Timeouts; t != nil {
			rule.RequestTimeout = c.duration(rule, field+".timeouts.request", t.Request)
			rule.BackendRequestTimeout = c.duration(rule, field+".timeouts.backendRequest", t.BackendRequest)
			if r, b := rule.RequestTimeout, rule.BackendRequestTimeout; r != nil && b != nil && r.AsDuration() > 0 && b.AsDuration() > r.AsDuration() {
				c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".timeouts.backendRequest", "is longer than the request may take")
			}
		}
		rule.Retry = c.retry(rule, field+".retry", in.Retry)
		rule.SessionPersistence = c.persistence(rule, field+".sessionPersistence", in.SessionPersistence)
		out = append(out, rule)
	}
	return out
}

func (c *routeConversion) httpMatch(rule *mesh.RouteRule, field string, in gateway.HTTPRouteMatch) *mesh.RouteMatch {
	m := &mesh.RouteMatch{Path: c.path(rule, field+".path", in.Path)}
	if in.Method != nil {
		m.Method = string(*in.Method)
	}
	for i, h := range in.Headers {
		kind := gateway.HeaderMatchExact
		if h.Type != nil {
			kind = *h.Type
		}
		m.Headers = c.value(rule, fmt.Sprintf("%s.headers[%d]", field, i), m.Headers, strings.ToLower(string(h.Name)), string(kind), h.Value)
	}
	for i, q := range in.QueryParams {
		kind := gateway.QueryParamMatchExact
		if q.Type != nil {
			kind = *q.Type
		}
		m.QueryParams = c.value(rule, fmt.Sprintf("%s.queryParams[%d]", field, i), m.QueryParams, string(q.Name), string(kind), q.Value)
	}
	return m
}

// path converts a match of a path; that of every path is none.
func (c *routeConversion) path(rule *mesh.RouteRule, field string, in *gateway.HTTPPathMatch) *mesh.PathMatch {
	if in == nil {
		return nil
	}
	kind, value := gateway.PathMatchPathPrefix, "/"
	if in.Type != nil {
		kind = *in.Type
	}
	if in.Value != nil {
		value = *in.Value
	}
	switch kind {
	case gateway.PathMatchExact:
		return &mesh.PathMatch{Match: &mesh.PathMatch_Exact{Exact: value}}
	case gateway.PathMatchPathPrefix:
		return &mesh.PathMatch{Match: &mesh.PathMatch_Prefix{Prefix: value}}
	case gateway.PathMatchRegularExpression:
		c.checkRegex(rule, field+".value", value)
		return &mesh.PathMatch{Match: &mesh.PathMatch_Regex{Regex: value}}
	}
	c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".type", fmt.Sprintf("%q is not served", kind))
	return nil
}

// value adds a match of a header or a query parameter. Of several with one name
// only the first counts, as the Gateway API has it.
func (c *routeConversion) value(rule *mesh.RouteRule, field string, to []*mesh.ValueMatch, name, kind, value string) []*mesh.ValueMatch {
	for _, other := range to {
		if other.Name == name {
			return to
		}
	}
	switch kind {
	case string(gateway.HeaderMatchExact):
		return append(to, &mesh.ValueMatch{Name: name, Match: &mesh.ValueMatch_Exact{Exact: value}})
	case string(gateway.HeaderMatchRegularExpression):
		c.checkRegex(rule, field+".value", value)
		return append(to, &mesh.ValueMatch{Name: name, Match: &mesh.ValueMatch_Regex{Regex: value}})
	}
	c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".type", fmt.Sprintf("%q is not served", kind))
	return to
}

// maxRegex bounds what one pattern may cost to compile, in bytes.
const maxRegex = 1024

func (c *routeConversion) checkRegex(rule *mesh.RouteRule, field, pattern string) {
	if len(pattern) > maxRegex {
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field, fmt.Sprintf("has %d bytes: a pattern may have %d", len(pattern), maxRegex))
		return
	}
	if _, err := regexp.Compile(pattern); err != nil {
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field, fmt.Sprintf("is no regular expression (RE2): %v", err))
	}
}

// duration reads what the Gateway API allows of Go's durations; nil if nothing is said.
func (c *routeConversion) duration(rule *mesh.RouteRule, field string, in *gateway.Duration) *durationpb.Duration {
	if in == nil {
		return nil
	}
	d, err := time.ParseDuration(string(*in))
	if err != nil || d < 0 {
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field, fmt.Sprintf("%q is no duration, such as 500ms or 1m30s", *in))
		return nil
	}
	return durationpb.New(d)
}

// maxAttempts bounds how often one request may be repeated.
const maxAttempts = 25

func (c *routeConversion) retry(rule *mesh.RouteRule, field string, in *gateway.HTTPRouteRetry) *mesh.RouteRetry {
	if in == nil {
		return nil
	}
	out := &mesh.RouteRetry{Attempts: 1, Backoff: c.duration(rule, field+".backoff", in.Backoff)}
	if in.Attempts != nil {
		if *in.Attempts < 0 || *in.Attempts > maxAttempts {
			c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".attempts", fmt.Sprintf("is not between 0 and %d", maxAttempts))
		} else {
			out.Attempts = uint32(*in.Attempts)
		}
	}
	for i, code := range in.Codes {
		if code < 400 || code > 599 {
			c.refuse(rule, gateway.RouteReasonUnsupportedValue, fmt.Sprintf("%s.codes[%d]", field, i), fmt.Sprintf("%d is not between 400 and 599", code))
			continue
		}
		out.Codes = append(out.Codes, uint32(code))
	}
	return out
}

// defaultSession names the header of sessions that have no name, and begins the names of
// cookies: each rule has another, so that a client's sessions of several go side by side.
const defaultSession = "ambit-session"

func (c *routeConversion) cookieName(field string) string {
	h := fnv.New32a()
	fmt.Fprint(h, c.kind, " ", c.namespace, "/", c.name, " ", field)
	return fmt.Sprintf("%s-%08x", defaultSession, h.Sum32())
}

// isCookiePath tells whether a cookie may have a path (RFC 6265 section 4.1.1).
func isCookiePath(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r >= 0x7f || r == ';' })
}

func (c *routeConversion) persistence(rule *mesh.RouteRule, field string, in *gateway.SessionPersistence) *mesh.SessionPersistence {
	if in == nil {
		return nil
	}
	out := &mesh.SessionPersistence{Name: defaultSession, AbsoluteTimeout: c.duration(rule, field+".absoluteTimeout", in.AbsoluteTimeout)}
	kind := gateway.CookieBasedSessionPersistence
	if in.Type != nil {
		kind = *in.Type
	}
	switch kind {
	case gateway.CookieBasedSessionPersistence:
		out.Name = c.cookieName(field)
		if in.Cookie == nil {
			return out
		}
		if in.Cookie.Name != nil {
			out.Name = string(*in.Cookie.Name)
		}
		if p := in.Cookie.Path; p != nil && *p != "/" {
			if out.Path = *p; !isCookiePath(*p) {
				c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".cookie.path", fmt.Sprintf("%q is no path of a cookie", *p))
			}
		}
		out.Permanent = in.Cookie.LifetimeType != nil && *in.Cookie.LifetimeType == gateway.PermanentCookieLifetimeType
		if out.Permanent && out.AbsoluteTimeout == nil {
			c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".absoluteTimeout", "is needed for a permanent cookie")
		}
	case gateway.HeaderBasedSessionPersistence:
		out.Type = mesh.SessionPersistence_HEADER
		if in.Header != nil {
			out.Name = strings.ToLower(string(in.Header.Name))
		}
	default:
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".type", fmt.Sprintf("%q is not served", kind))
	}
	return out
}
