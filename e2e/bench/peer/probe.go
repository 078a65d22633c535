package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/internal/topology"
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

// Probe tries a proxy.
type Probe struct {
	// From is where it is tried from, To where it listens.
	From *topology.NetNS
	To   netip.AddrPort
	// PKI is the folder of the benchmark's certificates (package pki).
	PKI string
	// Scratch is a folder for what the probe makes.
	Scratch string
	// Protocols, if any, are what is negotiated: of a mesh's proxy, which is known
	// by its identity and not by a name.
	Protocols []string
	// Ask, if set, is what proves that a connection is of use: some proxies refuse
	// nobody before they are asked for something.
	Ask func(net.Conn) error
}

// Try proves that the proxy does what all are to be measured with: it takes a
// certificate of the authority with TLS 1.3 and AES-128-GCM, and neither no
// certificate nor a stranger's nor TLS 1.2. It waits for the proxy to listen as long
// as it is alive.
func (p Probe) Try(ctx context.Context, alive func() error) error {
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(pki.FilesOf(p.PKI, pki.ClientName).CA)
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("read root: %w", errors.Join(err, errors.New("no root")))
	}
	files := pki.FilesOf(p.PKI, pki.ClientName)
	own, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	// What the proxy's name is differs; that it is the authority's does not.
	config := &tls.Config{RootCAs: roots, ServerName: pki.ServerName, NextProtos: p.Protocols, Certificates: []tls.Certificate{own}}
	if len(p.Protocols) > 0 {
		config.InsecureSkipVerify = true
	}
	if err := p.accepted(ctx, config, alive); err != nil {
		return err
	}
	old := config.Clone()
	old.MaxVersion = tls.VersionTLS12
	if err := p.refused(old); err != nil {
		return fmt.Errorf("TLS 1.2: %w", err)
	}
	nobody := config.Clone()
	nobody.Certificates = nil
	if err := p.refused(nobody); err != nil {
		return fmt.Errorf("no certificate: %w", err)
	}
	stranger, err := p.stranger()
	if err != nil {
		return err
	}
	unknown := config.Clone()
	// Shown whatever authorities the proxy names.
	unknown.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
	if err := p.refused(unknown); err != nil {
		return fmt.Errorf("a stranger's certificate: %w", err)
	}
	return nil
}

// stranger is a certificate of another authority.
func (p Probe) stranger() (tls.Certificate, error) {
	dir, err := os.MkdirTemp(p.Scratch, "stranger")
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
func (p Probe) accepted(ctx context.Context, config *tls.Config, alive func() error) error {
	const pause = 20 * time.Millisecond
	for deadline := time.Now().Add(probeTimeout); ; time.Sleep(pause) {
		state, err := p.handshake(config)
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

func (p Probe) refused(config *tls.Config) error {
	if _, err := p.handshake(config); err == nil {
		return errAccepted
	}
	return nil
}

// handshake is done with once the proxy has not refused for a while.
func (p Probe) handshake(config *tls.Config) (state tls.ConnectionState, err error) {
	err = p.From.Do(func() error {
		raw, err := net.DialTimeout("tcp", p.To.String(), silence)
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
		if p.Ask != nil {
			return p.Ask(conn)
		}
		raw.SetReadDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil // it waits for us
		}
		return err
	})
	return state, err
}
