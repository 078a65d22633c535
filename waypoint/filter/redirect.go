package filter

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// pathChange replaces a whole path, or the prefix that was matched.
type pathChange struct {
	path   string
	prefix bool
}

func compilePath(in *mesh.PathModifier) (*pathChange, error) {
	var p pathChange
	switch m := in.GetPath().(type) {
	case *mesh.PathModifier_Full:
		p.path = m.Full
	case *mesh.PathModifier_Prefix:
		p = pathChange{m.Prefix, true}
	default:
		if in != nil {
			return nil, errors.New("path: neither full nor prefix")
		}
		return nil, nil
	}
	if p.path == "" && p.prefix {
		return &p, nil
	}
	normal, err := request.Path(p.path)
	if err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	p.path = normal
	return &p, nil
}

// apply is the table of HTTPRoute's ReplacePrefixMatch.
func (p *pathChange) apply(path string, m Matched) string {
	if p == nil {
		return path
	}
	if !p.prefix {
		return p.path
	}
	if !m.HasPrefix || path == "*" { // which has no beginning to replace
		return path
	}
	rest := path[len(m.Prefix):]
	switch {
	case rest != "":
		return strings.TrimSuffix(p.path, "/") + rest
	case p.path == "":
		return "/"
	}
	return p.path
}

func checkHostname(hostname string) error {
	if hostname == "" {
		return nil
	}
	r, err := request.Read("GET", hostname, "/", nil)
	if err == nil && r.Port != 0 {
		err = errors.New("has a port")
	}
	if err != nil {
		return fmt.Errorf("hostname: %q: %w", hostname, err)
	}
	return nil
}

type redirect struct {
	scheme, hostname string
	path             *pathChange
	port             uint16
	status           int
}

func compileRedirect(in *mesh.RequestRedirect) (*redirect, error) {
	r := &redirect{scheme: in.GetScheme(), hostname: in.GetHostname(), status: int(in.GetStatusCode())}
	switch r.scheme {
	case "", "http", "https":
	default:
		return nil, fmt.Errorf("scheme: %q, want http or https", r.scheme)
	}
	switch r.status {
	case 0:
		r.status = http.StatusFound
	case 301, 302, 303, 307, 308:
	default:
		return nil, fmt.Errorf("status_code: %d, want 301, 302, 303, 307 or 308", r.status)
	}
	if in.GetPort() > 65535 {
		return nil, fmt.Errorf("port: %d", in.GetPort())
	}
	r.port = uint16(in.GetPort())
	if err := checkHostname(r.hostname); err != nil {
		return nil, err
	}
	var err error
	r.path, err = compilePath(in.GetPath())
	return r, err
}

// answer composes the Location: a scheme that is given brings its own port, if none is
// given; the port that everybody knows is left out.
func (r *redirect) answer(seen *request.Request, m Matched) *Answer {
	scheme, host, port := r.scheme, r.hostname, r.port
	known := map[string]uint16{"http": 80, "https": 443}
	if port == 0 {
		port = m.Port
		if scheme != "" {
			port = known[scheme]
		}
	}
	if scheme == "" {
		scheme = "http"
	}
	if host == "" {
		host = seen.Host
	}
	location := scheme + "://" + host
	if port != 0 && port != known[scheme] {
		location += ":" + strconv.Itoa(int(port))
	}
	location += r.path.apply(seen.Path, m) + seen.Query
	return &Answer{Status: r.status, Fields: []http1.Field{{Name: "location", Value: location}}}
}

type rewrite struct {
	hostname string
	path     *pathChange
}

func compileRewrite(in *mesh.URLRewrite) (*rewrite, error) {
	if err := checkHostname(in.GetHostname()); err != nil {
		return nil, err
	}
	path, err := compilePath(in.GetPath())
	return &rewrite{in.GetHostname(), path}, err
}

func (r *rewrite) apply(seen *request.Request, m Matched, h *Head) {
	if r.hostname != "" {
		h.Authority = r.hostname
	}
	if r.path != nil {
		h.Path = r.path.apply(seen.Path, m) + seen.Query
	}
}
