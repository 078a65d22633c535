// Package pki is the benchmark's certificate authority: ECDSA P-256 throughout.
//
// Peers get files, each with a name and an identity; what speaks Ambit's own
// protocol signs its requests with the authority itself, as [Authority.Fetch].
//
// It is for processes that trust each other on one machine: the authority's key
// lies in the same folder.
package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Life of all certificates: longer than any run.
const life = 7 * 24 * time.Hour

// The names under which the sides of a pair know each other.
const (
	ClientName = "client.bench"
	ServerName = "server.bench"
)

// The identities of the sides.
var (
	ClientID = spiffe.ID{TrustDomain: "bench.local", Namespace: "bench", ServiceAccount: "client"}
	ServerID = spiffe.ID{TrustDomain: "bench.local", Namespace: "bench", ServiceAccount: "server"}
)

// Authority signs certificates.
type Authority struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Files are what a peer is configured with, in PEM.
type Files struct {
	CA, Certificate, Key string
	// Both is the certificate and then the key.
	Both string
}

// New makes an authority and writes it and the two sides' certificates below dir.
func New(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "benchmark root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the root: %w", err)
	}
	a := &Authority{key: key}
	if a.root, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read the root: %w", err)
	}
	if err := write(dir, "ca", der, key); err != nil {
		return nil, err
	}
	for name, id := range map[string]spiffe.ID{ClientName: ClientID, ServerName: ServerID} {
		leaf, err := a.Issue(name, id)
		if err != nil {
			return nil, err
		}
		if err := write(dir, name, leaf.Certificate[0], leaf.PrivateKey.(*ecdsa.PrivateKey)); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Load reads the authority that New has written below dir.
func Load(dir string) (*Authority, error) {
	files := FilesOf(dir, "ca")
	pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return nil, fmt.Errorf("load the authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("load the authority: its key is not ECDSA")
	}
	return &Authority{root: pair.Leaf, key: key}, nil
}

// FilesOf are the files of one side below dir.
func FilesOf(dir, name string) Files {
	return Files{
		CA:          filepath.Join(dir, "ca.crt"),
		Certificate: filepath.Join(dir, name+".crt"),
		Key:         filepath.Join(dir, name+".key"),
		Both:        filepath.Join(dir, name+".pem"),
	}
}

func write(dir, name string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key of %s: %w", name, err)
	}
	files := FilesOf(dir, name)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	for path, content := range map[string][]byte{
		files.Certificate: encode(der),
		files.Key:         keyPEM,
		files.Both:        append(encode(der), keyPEM...),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return fmt.Errorf("write certificates: %w", err)
		}
	}
	return nil
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Issue returns a certificate with its key; its name may be an address.
func (a *Authority) Issue(name string, id spiffe.ID) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key for %s: %w", id, err)
	}
	der, err := a.sign(&key.PublicKey, id, name)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Fetch signs a request, as certs.Config.Fetch wants it.
func (a *Authority) Fetch(_ context.Context, id spiffe.ID, csrPEM []byte) ([]string, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("the request is no PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("the request's key is not ECDSA")
	}
	der, err := a.sign(key, id)
	if err != nil {
		return nil, err
	}
	return []string{string(encode(der)), string(encode(a.root.Raw))}, nil
}

// Bundle returns the root, as certs.Config.Bundle wants it.
func (a *Authority) Bundle() []*x509.Certificate { return []*x509.Certificate{a.root} }

func (a *Authority) sign(key *ecdsa.PublicKey, id spiffe.ID, names ...string) ([]byte, error) {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	var hosts []string
	var addresses []net.IP
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			addresses = append(addresses, ip)
		} else {
			hosts = append(hosts, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: number, URIs: []*url.URL{id.URL()}, DNSNames: hosts, IPAddresses: addresses,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.root, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	return der, nil
}

// RootPEM is the root's certificate.
func (a *Authority) RootPEM() string { return string(encode(a.root.Raw)) }
