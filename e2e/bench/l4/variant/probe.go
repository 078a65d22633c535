package variant

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/pki"
)

const (
	// probeTimeout is how long a proxy may take to start.
	probeTimeout = 10 * time.Second
	// silence is how long a handshake may take.
	silence = 2 * time.Second
	// patience is how long its refusal may: in TLS 1.3 it comes after the
	// client's own part is done.
	patience = 500 * time.Millisecond
)

// probe looks at proxy B while it is alive.
type probe func(ctx context.Context, site Site, alive func() error) error

// probeTLS proves that proxy B does what all are to be measured with: it takes a
// certificate of the authority with TLS 1.3 and AES-128-GCM, and neither no
// certificate nor a stranger's nor TLS 1.2.
func probeTLS(protocols ...string) probe {
	return func(ctx context.Context, site Site, alive func() error) error {
		roots := x509.NewCertPool()
		pem, err := os.ReadFile(pki.FilesOf(site.PKI, pki.ClientName).CA)
		if err != nil || !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("read root: %w", errors.Join(err, errors.New("no root")))
		}
		files := pki.FilesOf(site.PKI, pki.ClientName)
		own, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
		if err != nil {
			return fmt.Errorf("load certificate: %w", err)
		}
		// Some proxies connect the application before anything is sent, and end
		// what they have accepted if nobody is there.
		app, err := standIn(site)
		if err != nil {
			return err
		}
		defer app.Close()
		// What the proxy's name is differs; that it is the authority's does not.
		config := &tls.Config{RootCAs: roots, ServerName: pki.ServerName, NextProtos: protocols, Certificates: []tls.Certificate{own}}
		if len(protocols) > 0 { // a mesh's proxy is known by its identity
			config.InsecureSkipVerify = true
		}
		if err := accepted(ctx, site, config, alive); err != nil {
			return err
		}
		old := config.Clone()
		old.MaxVersion = tls.VersionTLS12
		if err := refused(site, old); err != nil {
			return fmt.Errorf("TLS 1.2: %w", err)
		}
		nobody := config.Clone()
		nobody.Certificates = nil
		if err := refused(site, nobody); err != nil {
			return fmt.Errorf("no certificate: %w", err)
		}
		stranger, err := strangers(site)
		if err != nil {
			return err
		}
		unknown := config.Clone()
		// Shown whatever authorities the proxy names.
		unknown.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
		if err := refused(site, unknown); err != nil {
			return fmt.Errorf("a stranger's certificate: %w", err)
		}
		return nil
	}
}

// standIn listens in the application's place, which is not there yet. What
// connects waits in its queue.
func standIn(site Site) (listener net.Listener, err error) {
	err = site.Server.Do(func() (err error) {
		listener, err = net.Listen("tcp", site.App.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stand in for the application: %w", err)
	}
	return listener, nil
}

// strangers returns a certificate of another authority.
func strangers(site Site) (tls.Certificate, error) {
	dir, err := os.MkdirTemp(site.Dir, "stranger")
	if err != nil {
		return tls.Certificate{}, err
	}
	authority, err := pki.New(dir)
	if err != nil {
		return tls.Certificate{}, err
	}
	return authority.Issue(pki.ClientName, pki.ClientID)
}

// accepted waits until the proxy listens, as long as it is alive.
func accepted(ctx context.Context, site Site, config *tls.Config, alive func() error) error {
	const pause = 20 * time.Millisecond
	for deadline := time.Now().Add(probeTimeout); ; time.Sleep(pause) {
		state, err := handshake(site, config)
		switch {
		case err == nil && (state.Version != tls.VersionTLS13 || state.CipherSuite != tls.TLS_AES_128_GCM_SHA256):
			return fmt.Errorf("speaks %s with %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case alive() != nil:
			return alive()
		case !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(deadline):
			return err
		}
	}
}

var errAccepted = errors.New("accepted, which it must not be")

func refused(site Site, config *tls.Config) error {
	if _, err := handshake(site, config); err == nil {
		return errAccepted
	}
	return nil
}

// handshake is done with once the proxy has not refused for a while.
func handshake(site Site, config *tls.Config) (state tls.ConnectionState, err error) {
	err = site.Client.Do(func() error {
		raw, err := net.DialTimeout("tcp", site.tunnel().String(), silence)
		if err != nil {
			return err
		}
		defer raw.Close()
		conn := tls.Client(raw, config)
		raw.SetDeadline(time.Now().Add(silence))
		if err := conn.Handshake(); err != nil {
			return err
		}
		state = conn.ConnectionState()
		raw.SetReadDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil // it waits for us
		}
		return err
	})
	return state, err
}
