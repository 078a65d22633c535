package policy

import (
	"net/netip"
	"unicode/utf8"

	cel "github.com/ambit-mesh/ambit/internal/condition"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// evaluate a condition in CEL. What it speaks of and is not there, or no text, leaves it
// without an answer.
func evaluate(c *cel.Condition, s *Subject) answer {
	if c.OfEndpoint && !s.Endpoint.IsValid() {
		return later
	}
	holds, err := c.Holds(func(name string) (any, bool) { return variable(s, name) })
	switch {
	case err != nil:
		return unsure
	case holds:
		return yes
	}
	return no
}

// variable of a condition. Without a token there is nobody, of nothing: conditions may
// ask for that.
func variable(s *Subject, name string) (value any, ok bool) {
	var text string
	switch name {
	case cel.SourceIP:
		return address(s.Client)
	case cel.DestinationIP:
		return address(s.Endpoint.Addr())
	case cel.DestinationPort:
		return int64(s.Endpoint.Port()), s.Endpoint.Port() != 0
	case cel.Claims:
		if s.Claims == nil || s.Claims.All == nil {
			return map[string]any{}, true
		}
		return s.Claims.All, true
	case cel.Audiences:
		if s.Claims == nil {
			return []string{}, true
		}
		return s.Claims.Audiences, true
	case cel.Principal:
		if s.Claims != nil && s.Claims.Issuer != "" && s.Claims.Subject != "" {
			text = s.Claims.Issuer + "/" + s.Claims.Subject
		}
	case cel.Presenter:
		if s.Claims != nil {
			text = s.Claims.Presenter
		}
	case cel.SourcePrincipal, cel.SourceNamespace, cel.SourceAccount:
		id := s.Identity
		switch {
		case id.IsZero():
		case id.TrustDomain == "" || id.Namespace == "" || id.ServiceAccount == "":
			return nil, false
		case name == cel.SourceNamespace:
			text = id.Namespace
		case name == cel.SourceAccount:
			text = id.Namespace + "/" + id.ServiceAccount
		default:
			text = id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
		}
	default:
		return ofRequest(s, name)
	}
	return text, utf8.ValidString(text)
}

func address(addr netip.Addr) (any, bool) {
	return addr.Unmap().WithZone("").String(), addr.IsValid()
}

func ofRequest(s *Subject, name string) (value any, ok bool) {
	if s.Request == nil {
		return nil, false
	}
	var text string
	switch name {
	case cel.Method:
		text = s.Request.Method
	case cel.Path:
		text = request.Plain(s.Request.Path)
	case cel.Query:
		text = s.Request.Query
	case cel.Host:
		text = s.Request.Host
	case cel.Headers:
		return headers(s)
	default:
		return nil, false
	}
	return text, utf8.ValidString(text)
}

// headers by their names; several of one name are one with a comma between them: RFC
// 9110 section 5.3.
func headers(s *Subject) (any, bool) {
	all := make(map[string]string, len(s.Request.Fields))
	for i := range s.Request.Fields {
		f := &s.Request.Fields[i]
		if !utf8.ValidString(f.Value) {
			return nil, false
		}
		if before, several := all[f.Name]; several {
			all[f.Name] = before + "," + f.Value
			continue
		}
		all[f.Name] = f.Value
	}
	return all, true
}
