package translate

import (
	"fmt"
	"strings"

	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/mesh"
)

// grpcRules converts the rules of a GRPCRoute.
func (c *routeConversion) grpcRules(rules []gateway.GRPCRouteRule) (out []*mesh.RouteRule) {
	for i, in := range rules {
		c.rules++
		field := fmt.Sprintf("spec.rules[%d]", i)
		rule := &mesh.RouteRule{Name: sectionName(in.Name)}
		for j, m := range in.Matches {
			rule.Matches = append(rule.Matches, c.grpcMatch(rule, fmt.Sprintf("%s.matches[%d]", field, j), m))
		}
		rule.Filters = c.grpcFilters(rule, field+".filters", in.Filters)
		for j, ref := range in.BackendRefs {
			backendField := fmt.Sprintf("%s.backendRefs[%d]", field, j)
			backend := c.backend(backendField, ref.BackendRef)
			backend.Filters = c.grpcFilters(rule, backendField+".filters", ref.Filters)
			rule.Backends = append(rule.Backends, backend)
		}
		rule.SessionPersistence = c.persistence(rule, field+".sessionPersistence", in.SessionPersistence)
		out = append(out, rule)
	}
	return out
}

func (c *routeConversion) grpcMatch(rule *mesh.RouteRule, field string, in gateway.GRPCRouteMatch) *mesh.RouteMatch {
	m := &mesh.RouteMatch{}
	if in.Method != nil {
		m.Grpc = c.grpcMethod(rule, field+".method", *in.Method)
	}
	for i, h := range in.Headers {
		kind := gateway.GRPCHeaderMatchExact
		if h.Type != nil {
			kind = *h.Type
		}
		m.Headers = c.value(rule, fmt.Sprintf("%s.headers[%d]", field, i), m.Headers, strings.ToLower(string(h.Name)), string(kind), h.Value)
	}
	return m
}

func (c *routeConversion) grpcMethod(rule *mesh.RouteRule, field string, in gateway.GRPCMethodMatch) *mesh.GRPCMethodMatch {
	out := &mesh.GRPCMethodMatch{}
	if in.Service != nil {
		out.Service = *in.Service
	}
	if in.Method != nil {
		out.Method = *in.Method
	}
	kind := gateway.GRPCMethodMatchExact
	if in.Type != nil {
		kind = *in.Type
	}
	switch kind {
	case gateway.GRPCMethodMatchExact:
	case gateway.GRPCMethodMatchRegularExpression:
		out.Regex = true
		c.checkRegex(rule, field+".service", out.Service)
		c.checkRegex(rule, field+".method", out.Method)
	default:
		c.refuse(rule, gateway.RouteReasonUnsupportedValue, field+".type", fmt.Sprintf("%q is not served", kind))
	}
	return out
}

// grpcFilters converts filters: those of gRPC are a part of those of HTTP.
func (c *routeConversion) grpcFilters(rule *mesh.RouteRule, field string, filters []gateway.GRPCRouteFilter) []*mesh.RouteFilter {
	var http []gateway.HTTPRouteFilter
	for _, f := range filters {
		http = append(http, gateway.HTTPRouteFilter{
			Type: gateway.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		})
	}
	return c.httpFilters(rule, field, http)
}
