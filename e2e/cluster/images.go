package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The images that the cluster itself needs. No registry serves them, and the
// top-level domain (RFC 6761 section 6.4) says so.
const (
	pauseImage   = "cluster.invalid/pause:1"
	corednsImage = "cluster.invalid/coredns:1"
	probeImage   = "cluster.invalid/probe:1"
)

const ownModule = "github.com/ambit-mesh/ambit/e2e/cluster"

// ownPrograms are ours, and go into images.
var ownPrograms = []program{
	{ownModule + "/pause", "pause"},
	{ownModule + "/probe", "probe"},
}

//go:embed pause/main.go
var pauseSource []byte

//go:embed probe/main.go
var probeSource []byte

// programsHash makes a change of our own programs a change of the cache key.
func programsHash() string {
	hash := sha256.New()
	hash.Write(pauseSource)
	hash.Write(probeSource)
	return hex.EncodeToString(hash.Sum(nil))[:8]
}

// writeImages makes an image of one static binary each.
func writeImages(bin, folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make image folder: %w", err)
	}
	for binary, ref := range map[string]string{"pause": pauseImage, "coredns": corednsImage, "probe": probeImage} {
		tarPath := filepath.Join(folder, binary+".tar")
		if err := writeImage(tarPath, ref, filepath.Join(bin, binary)); err != nil {
			return fmt.Errorf("write image %s: %w", ref, err)
		}
	}
	return nil
}

// writeImage writes an image with nothing but one binary, its entry point.
func writeImage(tarPath, ref, binary string) error {
	tag, err := name.NewTag(ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("parse reference: %w", err)
	}
	entry := "/" + filepath.Base(binary)
	content, err := binaryLayer(binary, entry)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
	if err != nil {
		return fmt.Errorf("make layer: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("append layer: %w", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return fmt.Errorf("read image config: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{entry}}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return fmt.Errorf("set image config: %w", err)
	}
	if err := tarball.WriteToFile(tarPath, tag, image); err != nil {
		return fmt.Errorf("write tar: %w", err)
	}
	return nil
}

// binaryLayer is the same bytes for the same binary: no times, no owners.
func binaryLayer(binary, entry string) ([]byte, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("read binary: %w", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	header := &tar.Header{Name: entry[1:], Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
	if err := w.WriteHeader(header); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	if _, err := w.Write(content); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return layer.Bytes(), nil
}
