package variant

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/topology"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	if role := process.Role(); role != "" {
		Run(role)
		return
	}
	netnstest.Main(m, nil)
}

func TestConfigurations(t *testing.T) {
	s := settings{
		Workers: 2, MaxConn: 9850, Files: 19800, Buffer: tunedBuffer,
		Outbound: outbound, Tunnel: netip.MustParseAddrPort("10.2.0.2:15008"), App: netip.MustParseAddrPort("10.2.0.2:8080"),
		ServerName: pki.ServerName, Client: pki.FilesOf("/pki", pki.ClientName), Server: pki.FilesOf("/pki", pki.ServerName),
		Dir: "/site", StreamModule: "/usr/lib/nginx/modules/ngx_stream_module.so",
	}
	entries, err := templates.ReadDir("templates")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			var got bytes.Buffer
			if err := s.render(&got, e.Name()); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", e.Name())
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (go test -update writes it anew): %s", path, diff)
			}
		})
	}
}

func TestDefaultsAreThePeersOwn(t *testing.T) {
	var got bytes.Buffer
	if err := (settings{}).render(&got, "haproxy-client.cfg"); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(got.String(), "tune.bufsize") {
		t.Errorf("the default is set:\n%s", got.String())
	}
}

// site is two pods of a node and certificates.
func site(t *testing.T) Site {
	t.Helper()
	network, err := topology.New("a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	s := Site{Dir: t.TempDir(), PKI: t.TempDir(), Connections: 10}
	for _, pod := range []**topology.Pod{&s.Client, &s.Server} {
		if *pod, err = network.Node("a").AddPod("pod"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pki.New(s.PKI); err != nil {
		t.Fatal(err)
	}
	s.App = netip.AddrPortFrom(s.Server.IPv4, 8080)
	return s
}

// The engine's own server is one that passes.
func TestProbePassesAProxyThatDemandsWhatAllAreMeasuredWith(t *testing.T) {
	s := site(t)
	path, err := Bare(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if client, server := path.Processes(); len(client) != 1 || len(server) != 1 {
		t.Errorf("processes %v and %v, want one for each side", client, server)
	}
	if err := path.Stop(); err != nil {
		t.Error(err)
	}
}

func TestProbeFindsNobody(t *testing.T) {
	s := site(t)
	err := probeTLS()(t.Context(), s, func() error { return errors.New("it has ended") })
	if err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("got %v", err)
	}
}

func TestPairThatDoesNotStartIsAnErrorWithItsLastWords(t *testing.T) {
	s := site(t)
	broken := process.Program{Args: []string{"/bin/sh", "-c", "echo unknown keyword >&2; exit 1"}}
	_, err := startPair(t.Context(), s, broken, broken, "", probeTLS())
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "unknown keyword") {
		t.Errorf("got %v", err)
	}
}
