// Command echoimage builds the image of the application that the Gateway API's
// mesh tests run, under the names that they ask for.
//
//	go run ./e2e/conformance/echoimage -modfile v1.6.3.mod
//
// The names are read from the suite's own manifests, the programs are those of
// the module e2e/conformance/echo.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/deploy/image"
)

const (
	programs = "istio.io/istio/pkg/test/echo/cmd/"
	module   = "e2e/conformance/echo"
	suite    = "sigs.k8s.io/gateway-api/conformance"
	// validity of the server's certificate, which nobody verifies.
	validity = 10 * 365 * 24 * time.Hour
)

func main() {
	from := flag.String("suite", "e2e/conformance/gateway", "folder of the module that runs the suite")
	modfile := flag.String("modfile", "go.mod", "module file, in that folder, with the suite's version")
	out := flag.String("out", ".tmp/conformance", "folder for the archives")
	flag.Parse()
	if err := run(context.Background(), *from, *modfile, *out); err != nil {
		fmt.Fprintln(os.Stderr, "echoimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, from, modfile, out string) error {
	names, err := wanted(ctx, from, modfile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	contents := image.Layer{}
	for _, program := range []string{"client", "server"} {
		if contents["usr/local/bin/"+program], err = build(ctx, program); err != nil {
			return err
		}
	}
	if contents["cert.crt"], contents["cert.key"], err = certificate(); err != nil {
		return err
	}
	for _, name := range names {
		archive := filepath.Join(out, regexp.MustCompile(`[^a-z0-9.-]+`).ReplaceAllString(name, "-")+".tar")
		if err := image.Write(contents, []string{"/usr/local/bin/server"}, name, archive); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		fmt.Println(archive, name)
	}
	return nil
}

// wanted are the images that the suite's mesh manifests name.
func wanted(ctx context.Context, from, modfile string) ([]string, error) {
	// Not `go list`, which names no folder for what was not downloaded yet.
	text, err := output(ctx, from, "mod", "download", "-modfile", modfile, "-json", suite)
	if err != nil {
		return nil, err
	}
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(text, &downloaded); err != nil {
		return nil, fmt.Errorf("read what go mod download says of %s: %w", suite, err)
	}
	manifests, err := os.ReadFile(filepath.Join(downloaded.Dir, "mesh", "manifests.yaml"))
	if err != nil {
		return nil, fmt.Errorf("read the suite's manifests: %w", err)
	}
	names := make(map[string]bool)
	for _, match := range regexp.MustCompile(`(?m)^\s*(?:- )?image:\s*(\S+)\s*$`).FindAllSubmatch(manifests, -1) {
		names[string(match[1])] = true
	}
	if len(names) == 0 {
		return nil, errors.New("the suite's manifests name no image")
	}
	return slices.Sorted(maps.Keys(names)), nil
}

func build(ctx context.Context, program string) ([]byte, error) {
	folder, err := os.MkdirTemp("", "ambit-echo-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	file := filepath.Join(folder, program)
	if _, err := output(ctx, module, "build", "-trimpath", "-ldflags", "-s -w", "-o", file, programs+program); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

func output(ctx context.Context, folder string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s in %s: %w", strings.Join(args, " "), folder, err)
	}
	return text, nil
}

// certificate of the server's TLS ports, signed by itself.
func certificate() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "echo"}, DNSNames: []string{"echo"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
