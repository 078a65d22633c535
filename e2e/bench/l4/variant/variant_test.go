package variant

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/process"
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
		Dir: "/site", StreamModule: streamModule,
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

func TestProgramThatIsNotThereIsAbsentAndSaysWhy(t *testing.T) {
	t.Setenv("AMBIT_BENCH_ENVOY", "/nowhere/envoy")
	_, err := Envoy(t.Context(), Site{})
	var absent *Absent
	if !errors.As(err, &absent) || !strings.Contains(absent.Why, "/nowhere/envoy") {
		t.Errorf("got %v", err)
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

func TestProbeFindsWhatIsNotAsItIsSaidToBe(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*tls.Config)
		says   string
	}{
		{"nothing changed", func(*tls.Config) {}, ""},
		{"takes whoever has no certificate", func(c *tls.Config) { c.ClientAuth = tls.VerifyClientCertIfGiven }, "no certificate: accepted"},
		{"takes strangers", func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, "a stranger's certificate: accepted"},
		{"takes TLS 1.2", func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 }, "TLS 1.2: accepted"},
		{"speaks TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "speaks TLS 1.2"},
		{"is somebody else", func(c *tls.Config) { c.Certificates = []tls.Certificate{otherServer(t)} }, "unknown authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := site(t)
			config := serverConfig(t, s)
			c.change(config)
			serve(t, s, config)
			err := probeTLS()(t.Context(), s, func() error { return nil })
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

func serverConfig(t *testing.T, s Site) *tls.Config {
	t.Helper()
	files := pki.FilesOf(s.PKI, pki.ServerName)
	own, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := pki.Load(s.PKI)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority.Bundle()[0])
	return &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
}

func otherServer(t *testing.T) tls.Certificate {
	t.Helper()
	other, err := pki.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := other.Issue(pki.ServerName, pki.ServerID)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// serve accepts on the tunnel's port and keeps what it accepted.
func serve(t *testing.T, s Site, config *tls.Config) {
	t.Helper()
	err := s.Server.Do(func() error {
		listener, err := tls.Listen("tcp", s.tunnel().String(), config)
		if err != nil {
			return err
		}
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					conn.Read(make([]byte, 1))
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
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
