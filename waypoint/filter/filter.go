// Package filter is what routes do with requests and their responses.
//
//	filter.go  headers, paths, redirects
//	cors.go    what browsers ask before they let pages see responses
//
// Invariants: pure; fields of a connection (RFC 9110 section 7.6.1) are nobody's to set;
// a filter that is not known is an error, never left out.
package filter

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Check tells why a filter cannot be carried out, if it cannot.
func Check(f *mesh.RouteFilter) error {
	switch f := f.GetFilter().(type) {
	case *mesh.RouteFilter_RequestHeaders:
		return checkHeaders(f.RequestHeaders)
	case *mesh.RouteFilter_ResponseHeaders:
		return checkHeaders(f.ResponseHeaders)
	case *mesh.RouteFilter_Redirect:
		switch f.Redirect.GetStatusCode() {
		case 0, 301, 302, 303, 307, 308:
		default:
			return fmt.Errorf("redirect: status %d", f.Redirect.GetStatusCode())
		}
		return checkText(f.Redirect.GetScheme(), f.Redirect.GetHostname(), f.Redirect.GetPath().GetFull(), f.Redirect.GetPath().GetPrefix())
	case *mesh.RouteFilter_Rewrite:
		return checkText(f.Rewrite.GetHostname(), f.Rewrite.GetPath().GetFull(), f.Rewrite.GetPath().GetPrefix())
	case *mesh.RouteFilter_Mirror, *mesh.RouteFilter_Cors:
		return nil
	}
	return errors.New("a filter that this version does not know")
}

// checkText refuses what would end a line or a path.
func checkText(texts ...string) error {
	for _, text := range texts {
		for i := range len(text) {
			if c := text[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '\\' {
				return fmt.Errorf("%q: not of a host or a path", text)
			}
		}
	}
	return nil
}

func checkHeaders(m *mesh.HeaderModifier) error {
	for _, h := range slices.Concat(m.GetSet(), m.GetAdd()) {
		if !http1.IsToken(h.GetName()) || ofConnection(h.GetName()) {
			return fmt.Errorf("header %q is not to be set", h.GetName())
		}
		for i := range len(h.GetValue()) {
			if c := h.GetValue()[i]; c < ' ' && c != '\t' || c == 0x7f {
				return fmt.Errorf("header %s: value %q", h.GetName(), h.GetValue())
			}
		}
	}
	return nil
}

func ofConnection(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer", "content-length", "http2-settings":
		return true
	}
	return false
}

// Headers sets, then adds, then removes. The fields are changed in place.
func Headers(fields []http1.Field, m *mesh.HeaderModifier) []http1.Field {
	for _, h := range m.GetSet() {
		fields = append(without(fields, h.GetName()), http1.Field{Name: h.GetName(), Value: h.GetValue()})
	}
	for _, h := range m.GetAdd() {
		fields = append(fields, http1.Field{Name: h.GetName(), Value: h.GetValue()})
	}
	for _, name := range m.GetRemove() {
		fields = without(fields, name)
	}
	return fields
}

func without(fields []http1.Field, name string) []http1.Field {
	return slices.DeleteFunc(fields, func(f http1.Field) bool { return f.Name == name })
}

// Path changes a path, of which prefix is what the rule matched.
func Path(path string, m *mesh.PathModifier, prefix string) string {
	switch p := m.GetPath().(type) {
	case *mesh.PathModifier_Full:
		return orRoot(p.Full)
	case *mesh.PathModifier_Prefix:
		rest := strings.TrimPrefix(path, strings.TrimSuffix(prefix, "/"))
		return orRoot(strings.TrimSuffix(p.Prefix, "/") + rest)
	}
	return path
}

func orRoot(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "/" + path
	}
	return path
}

// Redirect is where a request is sent on to, and with which status. port is the one of
// the Service that it was addressed to.
func Redirect(r *request.Request, m *mesh.RequestRedirect, prefix string, port uint16) (status int, location string) {
	status = int(m.GetStatusCode())
	if status == 0 {
		status = 302
	}
	scheme, host := m.GetScheme(), m.GetHostname()
	to := m.GetPort()
	if to == 0 && scheme == "" {
		if to = uint32(r.Port); to == 0 {
			to = uint32(port)
		}
	}
	if scheme == "" {
		scheme = "http"
	}
	if host == "" {
		host = r.Host
	}
	if to != 0 && !(scheme == "http" && to == 80) && !(scheme == "https" && to == 443) {
		host += ":" + strconv.FormatUint(uint64(to), 10)
	}
	path, query := Path(r.Path, m.GetPath(), prefix), r.Query
	return status, scheme + "://" + host + path + query
}
