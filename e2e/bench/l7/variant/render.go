package variant

import (
	"embed"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
)

//go:embed templates
var templates embed.FS

// settings are what the peers' configurations are rendered from.
type settings struct {
	Workers int
	// Secure: TLS on both sides.
	Secure         bool
	Listen, Admin  netip.AddrPort
	Routes         []plan.Route
	Backends       []backend
	Host           string
	Canary         plan.Route
	ServerName     string
	Client, Server pki.Files
	Dir            string
}

// backend is where one of them listens.
type backend struct {
	Name string
	At   netip.AddrPort
}

// workers of every peer: as many as the lab's machine has CPUs.
const workers = 2

func (s Site) settings(secure bool) settings {
	out := settings{
		Workers: workers, Secure: secure, Listen: s.at(plainPort), Admin: s.at(adminPort), Routes: plan.List(s.Routes), Host: plan.Host,
		ServerName: pki.ServerName, Client: pki.FilesOf(s.PKI, pki.ClientName), Server: pki.FilesOf(s.PKI, pki.ServerName), Dir: s.Dir,
	}
	first := uint16(plan.FirstPort)
	if secure {
		out.Listen, first = s.at(securePort), plan.FirstTLSPort
	}
	for i, name := range plan.Backends {
		out.Backends = append(out.Backends, backend{name, netip.AddrPortFrom(s.Backend.IPv4, first+uint16(i))})
	}
	for _, r := range out.Routes {
		if r.Header != "" {
			out.Canary = r
		}
	}
	return out
}

// ByPath are the routes that look at nothing but the path and lead to one backend.
func (s settings) ByPath() (out []plan.Route) {
	for _, r := range s.Routes {
		if r.Header == "" && r.Prefix != "/" {
			out = append(out, r)
		}
	}
	return out
}

// Weighted are those with several backends.
func (s settings) Weighted() (out []plan.Route) {
	for _, r := range s.Routes {
		if len(r.Backends) > 1 {
			out = append(out, r)
		}
	}
	return out
}

// Rest is where everything else goes.
func (s settings) Rest() string { return s.Routes[len(s.Routes)-1].Backends[0].Name }

// To is the name of what a route leads to.
func (s settings) To(r plan.Route) string {
	if len(r.Backends) > 1 {
		return r.Name
	}
	return r.Backends[0].Name
}

// Stable is where those of the canary's path go that are not for it.
func (s settings) Stable() string {
	for _, r := range s.ByPath() {
		if r.Prefix == s.Canary.Prefix {
			return s.To(r)
		}
	}
	return s.Rest()
}

// CanaryVariable is the header as nginx names its variables.
func (s settings) CanaryVariable() string { return strings.ReplaceAll(s.Canary.Header, "-", "_") }

// Scheme of the backends.
func (s settings) Scheme() string {
	if s.Secure {
		return "https"
	}
	return "http"
}

// At is where a backend listens.
func (s settings) At(name string) (netip.AddrPort, error) {
	for _, b := range s.Backends {
		if b.Name == name {
			return b.At, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("no such backend: %q", name)
}

// write renders a configuration into the site's folder and returns its path.
func (s settings) write(name string) (string, error) {
	path := filepath.Join(s.Dir, name)
	file, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	defer file.Close()
	if err := s.render(file, name); err != nil {
		return "", err
	}
	return path, file.Close()
}

func (s settings) render(w io.Writer, name string) error {
	t, err := template.ParseFS(templates, "templates/"+name)
	if err != nil {
		return fmt.Errorf("read template: %w", err)
	}
	if err := t.Option("missingkey=error").Execute(w, s); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	return nil
}
