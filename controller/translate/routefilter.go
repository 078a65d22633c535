package translate

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/mesh"
)

// httpFilters converts the filters of a rule, or of one of its backends. One that
// is not served makes the whole rule invalid: it was there for a reason.
func (c *routeConversion) httpFilters(rule *mesh.RouteRule, field string, filters []gateway.HTTPRouteFilter) (out []*mesh.RouteFilter) {
	seen := make(map[gateway.HTTPRouteFilterType]bool)
	for i, in := range filters {
		at := fmt.Sprintf("%s[%d]", field, i)
		if seen[in.Type] && in.Type != gateway.HTTPRouteFilterRequestMirror {
			c.refuse(rule, gateway.RouteReasonIncompatibleFilters, at, fmt.Sprintf("%s is there twice", in.Type))
			continue
		}
		seen[in.Type] = true
		if f := c.httpFilter(rule, at, in); f != nil {
			out = append(out, f)
		}
	}
	if seen[gateway.HTTPRouteFilterRequestRedirect] && seen[gateway.HTTPRouteFilterURLRewrite] {
		c.refuse(rule, gateway.RouteReasonIncompatibleFilters, field, "RequestRedirect and URLRewrite exclude each other")
	}
	return out
}

func (c *routeConversion) httpFilter(rule *mesh.RouteRule, field string, in gateway.HTTPRouteFilter) *mesh.RouteFilter {
	missing := func(name string) *mesh.RouteFilter {
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+"."+name, "is missing")
		return nil
	}
	switch in.Type {
	case gateway.HTTPRouteFilterRequestHeaderModifier:
		if in.RequestHeaderModifier == nil {
			return missing("requestHeaderModifier")
		}
		return &mesh.RouteFilter{Filter: &mesh.RouteFilter_RequestHeaders{RequestHeaders: headerModifier(in.RequestHeaderModifier)}}
	case gateway.HTTPRouteFilterResponseHeaderModifier:
		if in.ResponseHeaderModifier == nil {
			return missing("responseHeaderModifier")
		}
		return &mesh.RouteFilter{Filter: &mesh.RouteFilter_ResponseHeaders{ResponseHeaders: headerModifier(in.ResponseHeaderModifier)}}
	case gateway.HTTPRouteFilterRequestRedirect:
		if in.RequestRedirect == nil {
			return missing("requestRedirect")
		}
		return &mesh.RouteFilter{Filter: &mesh.RouteFilter_Redirect{Redirect: c.redirect(rule, field+".requestRedirect", in.RequestRedirect)}}
	case gateway.HTTPRouteFilterURLRewrite:
		if in.URLRewrite == nil {
			return missing("urlRewrite")
		}
		rewrite := &mesh.URLRewrite{Path: c.pathModifier(rule, field+".urlRewrite.path", in.URLRewrite.Path)}
		if h := in.URLRewrite.Hostname; h != nil {
			rewrite.Hostname = strings.ToLower(string(*h))
		}
		return &mesh.RouteFilter{Filter: &mesh.RouteFilter_Rewrite{Rewrite: rewrite}}
	case gateway.HTTPRouteFilterRequestMirror:
		if in.RequestMirror == nil {
			return missing("requestMirror")
		}
		mirror := c.mirror(rule, field+".requestMirror", in.RequestMirror)
		if mirror == nil {
			return nil
		}
		return &mesh.RouteFilter{Filter: &mesh.RouteFilter_Mirror{Mirror: mirror}}
	case gateway.HTTPRouteFilterCORS:
		if in.CORS == nil {
			return missing("cors")
		}
		return &mesh.RouteFilter{Filter: &mesh.RouteFilter_Cors{Cors: cors(in.CORS)}}
	}
	c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".type", fmt.Sprintf("%q is not served", in.Type))
	return nil
}

func headerModifier(in *gateway.HTTPHeaderFilter) *mesh.HeaderModifier {
	out := &mesh.HeaderModifier{}
	for _, h := range in.Set {
		out.Set = append(out.Set, &mesh.HeaderModifier_Header{Name: strings.ToLower(string(h.Name)), Value: h.Value})
	}
	for _, h := range in.Add {
		out.Add = append(out.Add, &mesh.HeaderModifier_Header{Name: strings.ToLower(string(h.Name)), Value: h.Value})
	}
	for _, name := range in.Remove {
		out.Remove = append(out.Remove, strings.ToLower(name))
	}
	return out
}

func (c *routeConversion) redirect(rule *mesh.RouteRule, field string, in *gateway.HTTPRequestRedirectFilter) *mesh.RequestRedirect {
	out := &mesh.RequestRedirect{Path: c.pathModifier(rule, field+".path", in.Path)}
	if in.Scheme != nil {
		if out.Scheme = *in.Scheme; out.Scheme != "http" && out.Scheme != "https" {
			c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".scheme", fmt.Sprintf("%q is neither http nor https", out.Scheme))
		}
	}
	if in.Hostname != nil {
		out.Hostname = strings.ToLower(string(*in.Hostname))
	}
	if in.Port != nil {
		out.Port = uint32(*in.Port)
	}
	if in.StatusCode != nil {
		switch *in.StatusCode {
		case 301, 302, 303, 307, 308:
			out.StatusCode = uint32(*in.StatusCode)
		default:
			c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".statusCode", fmt.Sprintf("%d is not served: 301, 302, 303, 307 and 308 are", *in.StatusCode))
		}
	}
	return out
}

// pathModifier converts what becomes of a path. To replace a prefix, every match of
// the rule must have one.
func (c *routeConversion) pathModifier(rule *mesh.RouteRule, field string, in *gateway.HTTPPathModifier) *mesh.PathModifier {
	if in == nil {
		return nil
	}
	switch in.Type {
	case gateway.FullPathHTTPPathModifier:
		if in.ReplaceFullPath == nil {
			break
		}
		return &mesh.PathModifier{Path: &mesh.PathModifier_Full{Full: *in.ReplaceFullPath}}
	case gateway.PrefixMatchHTTPPathModifier:
		if in.ReplacePrefixMatch == nil {
			break
		}
		for _, m := range rule.Matches {
			switch m.GetPath().GetMatch().(type) {
			case nil, *mesh.PathMatch_Prefix:
			default:
				c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".type", "ReplacePrefixMatch needs matches of type PathPrefix alone")
			}
		}
		return &mesh.PathModifier{Path: &mesh.PathModifier_Prefix{Prefix: *in.ReplacePrefixMatch}}
	default:
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".type", fmt.Sprintf("%q is not served", in.Type))
		return nil
	}
	c.refuse(rule, gateway.RouteReasonUnsupportedValue, field, fmt.Sprintf("of type %s does not say what to put in place", in.Type))
	return nil
}

// mirror is nil if there is nobody to get copies: requests go on without, as the Gateway API
// has it.
func (c *routeConversion) mirror(rule *mesh.RouteRule, field string, in *gateway.HTTPRequestMirrorFilter) *mesh.RequestMirror {
	backend, problem := c.target(field+".backendRef", in.BackendRef)
	if problem != nil {
		c.unmirrored = append(c.unmirrored, *problem)
		return nil
	}
	out := &mesh.RequestMirror{Backend: backend}
	switch {
	case in.Percent != nil && in.Fraction != nil:
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field, "has percent and fraction: only one of them may be set")
	case in.Percent != nil:
		if *in.Percent < 0 || *in.Percent > 100 {
			c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".percent", "is not between 0 and 100")
			break
		}
		out.Numerator, out.Denominator = uint32(*in.Percent), 100
	case in.Fraction != nil:
		denominator := int32(100)
		if in.Fraction.Denominator != nil {
			denominator = *in.Fraction.Denominator
		}
		if in.Fraction.Numerator < 0 || denominator < 1 || in.Fraction.Numerator > denominator {
			c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".fraction", "is not between 0 and 1")
			break
		}
		out.Numerator, out.Denominator = uint32(in.Fraction.Numerator), uint32(denominator)
	}
	return out
}

func cors(in *gateway.HTTPCORSFilter) *mesh.CORS {
	out := &mesh.CORS{AllowCredentials: in.AllowCredentials != nil && *in.AllowCredentials}
	for _, origin := range in.AllowOrigins {
		out.AllowOrigins = append(out.AllowOrigins, strings.ToLower(string(origin)))
	}
	for _, method := range in.AllowMethods {
		out.AllowMethods = append(out.AllowMethods, string(method))
	}
	for _, name := range in.AllowHeaders {
		out.AllowHeaders = append(out.AllowHeaders, strings.ToLower(string(name)))
	}
	for _, name := range in.ExposeHeaders {
		out.ExposeHeaders = append(out.ExposeHeaders, strings.ToLower(string(name)))
	}
	if in.MaxAge > 0 {
		out.MaxAge = durationpb.New(time.Duration(in.MaxAge) * time.Second)
	}
	return out
}
