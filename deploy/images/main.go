// Command images builds the container images as tar archives, without a Docker
// daemon and without a base image: static binaries, a passwd file and /tmp.
//
//	go run ./deploy/images -version v0.1.0 -out .tmp/images
//
// Each archive can be imported into a container runtime (ctr images import) or
// pushed to a registry with any tool that reads docker-archive tars. The same
// sources give the same bytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ambit-mesh/ambit/deploy/image"
)

// product is one container image: where its binaries go, and what it starts.
type product struct {
	name       string
	entrypoint []string
	binaries   []binary
}

type binary struct {
	pkg  string
	path string
}

var images = []product{
	{
		name:       "ztunnel",
		entrypoint: []string{"/usr/local/bin/ztunnel"},
		binaries: []binary{
			{pkg: "./ztunnel", path: "usr/local/bin/ztunnel"},
			{pkg: "./ztunnel/cni", path: "opt/ambit/ambit-cni"},
		},
	},
	{
		name:       "controller",
		entrypoint: []string{"/usr/local/bin/controller"},
		binaries:   []binary{{pkg: "./controller", path: "usr/local/bin/controller"}},
	},
	{
		name:       "waypoint",
		entrypoint: []string{"/usr/local/bin/waypoint"},
		binaries:   []binary{{pkg: "./waypoint", path: "usr/local/bin/waypoint"}},
	},
	{
		name:       "shop",
		entrypoint: []string{"/usr/local/bin/shop"},
		binaries:   []binary{{pkg: "./e2e/apps/shop", path: "usr/local/bin/shop"}},
	},
}

func main() {
	var (
		version    = flag.String("version", "dev", "version stamped into the binaries")
		tag        = flag.String("tag", "dev", "tag of the images")
		repository = flag.String("repository", "ambit.mesh", "first part of the images' names")
		out        = flag.String("out", ".tmp/images", "folder for the archives")
	)
	flag.Parse()
	if err := run(context.Background(), *repository, *tag, *version, *out); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, repository, tag, version, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, img := range images {
		reference := repository + "/" + img.name + ":" + tag
		archive := filepath.Join(out, img.name+".tar")
		if err := build(ctx, img, reference, version, archive); err != nil {
			return fmt.Errorf("build %s: %w", reference, err)
		}
		fmt.Println(archive, reference)
	}
	return nil
}

func build(ctx context.Context, img product, reference, version, archive string) error {
	work, err := os.MkdirTemp("", "ambit-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	contents := image.Layer{}
	for _, b := range img.binaries {
		file := filepath.Join(work, filepath.Base(b.path))
		if err := compile(ctx, b.pkg, file, version); err != nil {
			return err
		}
		if contents[b.path], err = os.ReadFile(file); err != nil {
			return err
		}
	}
	return image.Write(contents, img.entrypoint, reference, archive)
}

// compile makes a static binary: an image without a base has no C library.
func compile(ctx context.Context, pkg, file, version string) error {
	ldflags := "-s -w -X github.com/ambit-mesh/ambit/internal/daemon.Version=" + version
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", ldflags, "-o", file, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}
