package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m, nil) }

func TestProgramThatIsNotThereIsAbsentAndSaysWhy(t *testing.T) {
	t.Setenv("AMBIT_BENCH_ENVOY", "/nowhere/envoy")
	_, err := Envoy()
	var absent *Absent
	if !errors.As(err, &absent) || !strings.Contains(absent.Why, "/nowhere/envoy") {
		t.Errorf("got %v", err)
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
			p := Probe{From: netnstest.NewNetNS(t).NetNS, To: netip.MustParseAddrPort("127.0.0.1:15008"), PKI: t.TempDir(), Scratch: t.TempDir()}
			if _, err := pki.New(p.PKI); err != nil {
				t.Fatal(err)
			}
			config := serverConfig(t, p.PKI)
			c.change(config)
			serve(t, p, config)
			err := p.Try(t.Context(), func() error { return nil })
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

func serverConfig(t *testing.T, dir string) *tls.Config {
	t.Helper()
	files := pki.FilesOf(dir, pki.ServerName)
	own, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := pki.Load(dir)
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

// serve accepts where the probe looks, and keeps what it accepted.
func serve(t *testing.T, p Probe, config *tls.Config) {
	t.Helper()
	err := p.From.Do(func() error {
		listener, err := tls.Listen("tcp", p.To.String(), config)
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
