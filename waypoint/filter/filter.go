// Package filter carries out what routes change in requests and responses.
//
//	filter.go    Compile: the filters of a rule or a backend -> one Chain
//	head.go      fields of requests and responses
//	redirect.go  redirects and rewrites
//	cors.go      who may read responses across origins
//
// A request goes through CORS, which may answer it, then through the modifiers of its
// fields, then it is redirected or rewritten; the rule's filters come before the
// backend's. The meaning is that of Gateway API's HTTPRoute.
//
// Invariants: pure; the fields that came are never written to; what a filter puts in
// was checked when it was compiled, so that it cannot end a field or a path.
package filter

import (
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Chain is the filters of a rule or a backend. It never changes; a nil one does nothing.
type Chain struct {
	requests, responses []modifier
	redirect            *redirect
	rewrite             *rewrite
	cors                *cors
	// Mirrors get their share of the requests as well.
	Mirrors []Mirror
}

// Mirror is a backend that gets Numerator of Denominator requests.
type Mirror struct {
	Service                string
	Port                   uint16
	Numerator, Denominator uint32
}

// Head is what goes on of a request.
type Head struct {
	Authority string
	// Path and query.
	Path   string
	Fields []http1.Field
}

// Answer is a response of the waypoint's own.
type Answer struct {
	Status int
	Fields []http1.Field
}

// Matched is by what a request was found.
type Matched struct {
	// Prefix without a slash at its end, if HasPrefix.
	Prefix    string
	HasPrefix bool
	// Port of the Service that was addressed.
	Port uint16
}

// Compile reads filters; an error names the one that cannot be carried out.
func Compile(in []*mesh.RouteFilter) (*Chain, error) {
	if len(in) == 0 {
		return nil, nil
	}
	c := &Chain{}
	for i, f := range in {
		if err := c.add(f); err != nil {
			return nil, fmt.Errorf("filters[%d].%w", i, err)
		}
	}
	if c.redirect != nil && c.rewrite != nil {
		return nil, errors.New("filters: both redirect and rewrite")
	}
	return c, nil
}

func (c *Chain) add(in *mesh.RouteFilter) error {
	if len(in.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("filter: is not known")
	}
	switch f := in.GetFilter().(type) {
	case *mesh.RouteFilter_RequestHeaders:
		m, err := compileModifier(f.RequestHeaders)
		c.requests = append(c.requests, m)
		return at("request_headers", err)
	case *mesh.RouteFilter_ResponseHeaders:
		m, err := compileModifier(f.ResponseHeaders)
		c.responses = append(c.responses, m)
		return at("response_headers", err)
	case *mesh.RouteFilter_Redirect:
		if c.redirect != nil {
			return errors.New("redirect: twice")
		}
		var err error
		c.redirect, err = compileRedirect(f.Redirect)
		return at("redirect", err)
	case *mesh.RouteFilter_Rewrite:
		if c.rewrite != nil {
			return errors.New("rewrite: twice")
		}
		var err error
		c.rewrite, err = compileRewrite(f.Rewrite)
		return at("rewrite", err)
	case *mesh.RouteFilter_Mirror:
		return at("mirror", c.mirror(f.Mirror))
	case *mesh.RouteFilter_Cors:
		if c.cors != nil {
			return errors.New("cors: twice")
		}
		var err error
		c.cors, err = compileCORS(f.Cors)
		return at("cors", err)
	}
	return errors.New("filter: is not known")
}

func at(field string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

func (c *Chain) mirror(in *mesh.RequestMirror) error {
	b := in.GetBackend()
	switch {
	case b.GetInvalid() != "":
		return errors.New(b.GetInvalid())
	case b.GetService() == "" || b.GetPort() == 0 || b.GetPort() > 65535:
		return fmt.Errorf("backend: %q, port %d", b.GetService(), b.GetPort())
	}
	m := Mirror{Service: b.GetService(), Port: uint16(b.GetPort()), Numerator: in.GetNumerator(), Denominator: in.GetDenominator()}
	if m.Denominator == 0 {
		m.Numerator, m.Denominator = 1, 1
	}
	c.Mirrors = append(c.Mirrors, m)
	return nil
}

// Request changes what goes on of a request, or answers it.
func (c *Chain) Request(seen *request.Request, m Matched, h *Head) *Answer {
	if c == nil {
		return nil
	}
	if c.cors != nil {
		if a := c.cors.preflight(seen); a != nil {
			return a
		}
	}
	for i := range c.requests {
		h.Fields = c.requests[i].apply(h.Fields)
	}
	if c.redirect != nil {
		a := c.redirect.answer(seen, m)
		a.Fields = c.Response(seen, a.Fields)
		return a
	}
	if c.rewrite != nil {
		c.rewrite.apply(seen, m, h)
	}
	return nil
}

// Changes tells whether Response does anything.
func (c *Chain) Changes() bool { return c != nil && (len(c.responses) > 0 || c.cors != nil) }

// Response changes the fields of the response to a request.
func (c *Chain) Response(seen *request.Request, fields []http1.Field) []http1.Field {
	if c == nil {
		return fields
	}
	if c.cors != nil {
		fields = c.cors.actual(seen, fields)
	}
	for i := range c.responses {
		fields = c.responses[i].apply(fields)
	}
	return fields
}
