package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// newPKI makes the certificates of a cluster in a folder of the test.
func newPKI(t *testing.T) (folder string, roots *x509.CertPool) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "pki")
	if err := ensurePKI(folder); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("ca.crt holds no certificate")
	}
	return folder, roots
}

func readPair(t *testing.T, folder, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestAPIServerIsTrustedByEveryNameItHas(t *testing.T) {
	folder, roots := newPKI(t)
	cert := readPair(t, folder, "apiserver")
	for _, host := range []string{"127.0.0.1", "172.30.0.1", "fd00:172:30::1", "10.96.0.1", "fd00:10:96::1", "kubernetes.default.svc", "localhost"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "172.30.0.11"}); err == nil {
		t.Error("the API server's certificate passes for a node")
	}
}

func TestClientsAreWhoRBACExpects(t *testing.T) {
	folder, roots := newPKI(t)
	for name, want := range map[string]struct{ user, group string }{
		"admin":              {"admin", "system:masters"},
		"controller-manager": {"system:kube-controller-manager", ""},
		"kube-proxy":         {"system:kube-proxy", ""},
		"n2":                 {"system:node:n2", "system:nodes"},
	} {
		cert := readPair(t, folder, name)
		options := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		if _, err := cert.Verify(options); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if cert.Subject.CommonName != want.user || strings.Join(cert.Subject.Organization, ",") != want.group {
			t.Errorf("%s is %s, want %+v", name, cert.Subject, want)
		}
		options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if _, err := cert.Verify(options); err == nil {
			t.Errorf("%s passes for a server", name)
		}
	}
}

func TestFrontProxyHasAnAuthorityOfItsOwn(t *testing.T) {
	folder, roots := newPKI(t)
	cert := readPair(t, folder, frontProxyClient.name)
	options := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := cert.Verify(options); err == nil {
		t.Error("the cluster's authority vouches for the front proxy")
	}
}

func TestCertificatesAreMadeOnce(t *testing.T) {
	folder, _ := newPKI(t)
	before := readPair(t, folder, "admin")
	if err := ensurePKI(folder); err != nil {
		t.Fatal(err)
	}
	if !before.Equal(readPair(t, folder, "admin")) {
		t.Error("the second call made new certificates")
	}
}

func TestHalfMadeCertificatesAreMadeAnew(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "pki")
	if err := os.Mkdir(folder+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder+".new", "ca.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ensurePKI(folder); err != nil {
		t.Fatal(err)
	}
	readPair(t, folder, "admin")
}

func TestKubeconfigCarriesTheCredentials(t *testing.T) {
	folder, _ := newPKI(t)
	content, err := newKubeconfig(folder, "https://127.0.0.1:16443", "admin")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(filepath.Join(folder, "admin.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"server: https://127.0.0.1:16443\n",
		"client-certificate-data: " + base64.StdEncoding.EncodeToString(cert) + "\n",
		"context: {cluster: ambit, user: admin}\n",
	} {
		if !strings.Contains(string(content), want) {
			t.Errorf("kubeconfig lacks %q", want)
		}
	}
}
