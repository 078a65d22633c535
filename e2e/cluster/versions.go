package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// versions are the releases that the two go.mod files pin: there is no second
// place to keep in step.
type versions struct {
	toolchain                 string // goX.Y.Z
	kubernetes, etcd, coredns string // each with a leading v
	programs                  string // hash of our own programs inside images
}

func readVersions(module string) (versions, error) {
	main, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return versions{}, fmt.Errorf("read pinned versions: %w", err)
	}
	nested, err := os.ReadFile(filepath.Join(module, "coredns/go.mod"))
	if err != nil {
		return versions{}, fmt.Errorf("read pinned versions: %w", err)
	}
	v := versions{programs: programsHash()}
	for _, want := range []struct {
		text, path string
		version    *string
	}{
		{string(main), "k8s.io/kubernetes", &v.kubernetes},
		{string(main), "go.etcd.io/etcd/server/v3", &v.etcd},
		{string(nested), "github.com/coredns/coredns", &v.coredns},
	} {
		if *want.version, err = requiredVersion(want.text, want.path); err != nil {
			return versions{}, err
		}
	}
	toolchain := regexp.MustCompile(`(?m)^toolchain (\S+)`).FindSubmatch(main)
	if toolchain == nil {
		return versions{}, errors.New("go.mod names no toolchain")
	}
	v.toolchain = string(toolchain[1])
	return v, nil
}

// requiredVersion finds the version that a go.mod's text requires of path.
func requiredVersion(text, path string) (string, error) {
	line := regexp.MustCompile(`(?m)^(?:require|\t) ?` + regexp.QuoteMeta(path) + ` (v\S+)`)
	match := line.FindStringSubmatch(text)
	if match == nil {
		return "", fmt.Errorf("go.mod requires no %s", path)
	}
	return match[1], nil
}

// key names the cache folder of exactly these versions.
func (v versions) key() string {
	return fmt.Sprintf("%s-etcd-%s-coredns-%s-%s-%s-%s", v.kubernetes, v.etcd, v.coredns, v.toolchain, v.programs, runtime.GOARCH)
}

// kubernetesStamp is what the linker writes into the Kubernetes binaries:
// without it they report v0.0.0 and the components refuse each other's skew.
func (v versions) kubernetesStamp() string {
	parts := strings.SplitN(strings.TrimPrefix(v.kubernetes, "v"), ".", 3)
	const at = "-X k8s.io/component-base/version."
	return strings.Join([]string{"-s -w",
		at + "gitVersion=" + v.kubernetes, at + "gitMajor=" + parts[0], at + "gitMinor=" + parts[1], at + "gitTreeState=clean",
	}, " ")
}
