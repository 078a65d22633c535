package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A lab outlives nobody's patience: its certificates are never renewed.
const certLifetime = 10 * 365 * 24 * time.Hour

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// request is one certificate to be issued, as files NAME.crt and NAME.key.
type request struct {
	name  string
	org   string // RBAC group
	user  string // common name, RBAC user
	hosts []string
	usage x509.ExtKeyUsage
}

// requests of the cluster's own authority.
func requests() []request {
	const client, server = x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	control := machines()[0]
	all := []request{
		{name: "apiserver", user: "kube-apiserver", usage: server, hosts: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
			"127.0.0.1", "::1", apiService4, apiService6, control.address4().String(), control.address6().String(),
		}},
		{name: "apiserver-kubelet-client", org: "system:masters", user: "apiserver-kubelet-client", usage: client},
		{name: "admin", org: "system:masters", user: "admin", usage: client},
		{name: "controller-manager", user: "system:kube-controller-manager", usage: client},
		{name: "scheduler", user: "system:kube-scheduler", usage: client},
		{name: "kube-proxy", user: "system:kube-proxy", usage: client},
	}
	for _, n := range nodes() {
		all = append(all,
			request{name: n.name, org: "system:nodes", user: "system:node:" + n.name, usage: client},
			request{name: n.name + "-serving", org: "system:nodes", user: "system:node:" + n.name, usage: server,
				hosts: []string{n.name, n.address4().String(), n.address6().String()}},
		)
	}
	return all
}

// frontProxyClient is what the API server shows to extension servers; another
// authority signs it, so that no other certificate passes for it.
var frontProxyClient = request{name: "front-proxy-client", user: "front-proxy-client", usage: x509.ExtKeyUsageClientAuth}

// ensurePKI makes all certificates, unless they are there. The folder appears
// complete or not at all.
func ensurePKI(folder string) error {
	if _, err := os.Stat(folder); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for certificates: %w", err)
	}
	staging := folder + ".new"
	if err := os.RemoveAll(staging); err != nil {
		return fmt.Errorf("remove half-made certificates: %w", err)
	}
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return fmt.Errorf("make folder for certificates: %w", err)
	}
	if err := writePKI(staging); err != nil {
		return err
	}
	if err := os.Rename(staging, folder); err != nil {
		return fmt.Errorf("put certificates in place: %w", err)
	}
	return nil
}

func writePKI(folder string) error {
	ca, err := newAuthority(folder, "ca")
	if err != nil {
		return err
	}
	for _, r := range requests() {
		if err := ca.issue(folder, r); err != nil {
			return err
		}
	}
	front, err := newAuthority(folder, "front-proxy-ca")
	if err != nil {
		return err
	}
	if err := front.issue(folder, frontProxyClient); err != nil {
		return err
	}
	tokens, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key for service-account tokens: %w", err)
	}
	if err := writeKey(filepath.Join(folder, "service-account.key"), tokens); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(tokens.Public())
	if err != nil {
		return fmt.Errorf("encode key for service-account tokens: %w", err)
	}
	return writePEM(filepath.Join(folder, "service-account.pub"), "PUBLIC KEY", public)
}

func newAuthority(folder, name string) (*authority, error) {
	template := certTemplate(pkix.Name{CommonName: name})
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back %s: %w", name, err)
	}
	return &authority{cert: cert, key: key}, writePair(folder, name, der, key)
}

func (a *authority) issue(folder string, r request) error {
	subject := pkix.Name{CommonName: r.user}
	if r.org != "" {
		subject.Organization = []string{r.org}
	}
	template := certTemplate(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{r.usage}
	for _, host := range r.hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key of %s: %w", r.name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign %s: %w", r.name, err)
	}
	return writePair(folder, r.name, der, key)
}

func certTemplate(subject pkix.Name) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial) // never fails
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      subject,
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(certLifetime),
	}
}

func writePair(folder, name string, der []byte, key crypto.PrivateKey) error {
	if err := writePEM(filepath.Join(folder, name+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writeKey(filepath.Join(folder, name+".key"), key)
}

func writeKey(path string, key crypto.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return writePEM(path, "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}
