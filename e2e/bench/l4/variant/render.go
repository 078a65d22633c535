package variant

import (
	"embed"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"

	"github.com/ambit-mesh/ambit/e2e/bench/pki"
)

//go:embed templates
var templates embed.FS

// settings are what the peers' configurations are rendered from.
type settings struct {
	Workers int
	// MaxConn is how many connections a proxy is to take at once, and Files how
	// many files it may open: two for each.
	MaxConn, Files        int
	Buffer                int // HAProxy's tune.bufsize; 0 for its default
	Outbound, Tunnel, App netip.AddrPort
	ServerName            string
	Client, Server        pki.Files
	Dir                   string
	StreamModule          string // nginx's; empty if it is built in
}

// workers of every peer: as many as the lab's machine has CPUs.
const workers = 2

// spareFiles are those that are no connection's.
const spareFiles = 100

func (s Site) settings() settings {
	return settings{
		Workers: workers, MaxConn: s.Connections, Files: 2*s.Connections + spareFiles,
		Outbound: outbound, Tunnel: s.tunnel(), App: s.App,
		ServerName: pki.ServerName, Client: pki.FilesOf(s.PKI, pki.ClientName), Server: pki.FilesOf(s.PKI, pki.ServerName),
		Dir: s.Dir,
	}
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
