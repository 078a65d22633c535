// Command peers builds the images of programs that others wrote and the end-to-end tests
// have Ambit talk to, each from a module of its own, beside this folder.
//
//	go run ./e2e/conformance/peers -cache ~/.cache/ambit/peers
//
// An image is built once for each content of its module, and kept in the cache folder.
// It prints the archives.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/ambit-mesh/ambit/deploy/image"
)

// peer is a program, and the module that it is built in.
type peer struct{ name, program string }

var peers = []peer{
	{"collector", "."}, // the OpenTelemetry Collector
	{"extauthz", "istio.io/istio/samples/extauthz/cmd/extauthz"},
}

const modules = "e2e/conformance"

func main() {
	cache := flag.String("cache", ".tmp/peers", "folder for the archives")
	flag.Parse()
	if err := run(context.Background(), *cache); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cache string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	var kept []string
	for _, p := range peers {
		archive, err := p.archive(ctx, cache)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		kept = append(kept, archive)
		fmt.Println(archive)
	}
	// Of modules as they were before nobody will ask again.
	all, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil {
		return err
	}
	for _, file := range all {
		if !slices.Contains(kept, file) {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	return nil
}

// archive of a peer's image: the one in the cache, or a new one.
func (p peer) archive(ctx context.Context, cache string) (string, error) {
	folder := filepath.Join(modules, p.name)
	version, err := hashOf(folder)
	if err != nil {
		return "", err
	}
	archive := filepath.Join(cache, "peer-"+p.name+"-"+version+".tar")
	if _, err := os.Stat(archive); !errors.Is(err, fs.ErrNotExist) {
		return archive, err
	}
	work, err := os.MkdirTemp("", "ambit-peer-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	file := filepath.Join(work, p.name)
	cmd := exec.CommandContext(ctx, "go", "build", "-C", folder, "-trimpath", "-ldflags", "-s -w", "-o", file, p.program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=-buildvcs=false -mod=readonly")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go build %s in %s: %w", p.program, folder, err)
	}
	binary, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	half := archive + ".half"
	path := "usr/local/bin/" + p.name
	if err := image.Write(image.Layer{path: binary}, []string{"/" + path}, "ambit.mesh/peer-"+p.name+":dev", half); err != nil {
		return "", err
	}
	return archive, os.Rename(half, archive)
}

// hashOf what an image is made from.
func hashOf(folder string) (string, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	for _, file := range files { // in order
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", filepath.Base(file), len(content), content)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}
