// Package image writes container images as tar archives, without a Docker daemon
// and without a base image: the files that they are given, a passwd file and /tmp.
//
// Equal contents are equal bytes. Who builds what goes in is the caller.
package image

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Layer is the contents of an image's only layer: executable files by path,
// without a leading slash.
type Layer map[string][]byte

const passwd = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"

// tar returns the layer as an uncompressed archive: sorted, owned by root, with
// no times, so that equal contents are equal bytes.
func (l Layer) tar() ([]byte, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, dir := range l.folders() {
		mode := int64(0o755)
		if dir == "tmp" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode}); err != nil {
			return nil, err
		}
	}
	file := func(name string, mode int64, body []byte) error {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body))}); err != nil {
			return err
		}
		_, err := w.Write(body)
		return err
	}
	if err := file("etc/passwd", 0o644, []byte(passwd)); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(l)) {
		if err := file(name, 0o755, l[name]); err != nil {
			return nil, err
		}
	}
	return buffer.Bytes(), w.Close()
}

// folders returns every folder that the files need, parents first.
func (l Layer) folders() []string {
	set := map[string]bool{"etc": true, "tmp": true}
	for name := range l {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			set[dir] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// Write makes the archive of an image that has this name.
func Write(contents Layer, entrypoint []string, reference, archive string) error {
	body, err := contents.tar()
	if err != nil {
		return err
	}
	files, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(body)), nil
	})
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, files)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config.OS, config.Architecture = "linux", goarch()
	config.Config = v1.Config{Entrypoint: entrypoint, Env: []string{"PATH=/usr/local/bin"}, WorkingDir: "/"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	tag, err := name.NewTag(reference)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(archive, tag, img)
}

// goarch is the architecture that the binaries are built for.
func goarch() string {
	if arch := os.Getenv("GOARCH"); arch != "" {
		return arch
	}
	return runtime.GOARCH
}
