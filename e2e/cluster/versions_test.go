package main

import (
	"strings"
	"testing"
)

func TestVersionsAreThoseOfTheModules(t *testing.T) {
	v, err := readVersions(".")
	if err != nil {
		t.Fatal(err)
	}
	for version, prefix := range map[string]string{v.kubernetes: "v", v.etcd: "v", v.coredns: "v", v.toolchain: "go"} {
		if strings.Count(version, ".") != 2 || !strings.HasPrefix(version, prefix) {
			t.Errorf("version %q, want %sX.Y.Z", version, prefix)
		}
		if !strings.Contains(v.key(), version) {
			t.Errorf("cache key %s lacks %s", v.key(), version)
		}
	}
}

func TestRequiredVersion(t *testing.T) {
	const mod = "module a\n\nrequire example.com/one v1.2.3\n\nrequire (\n\texample.com/two v4.5.6\n\texample.com/two/three v7.8.9 // indirect\n)\n"
	for path, want := range map[string]string{"example.com/one": "v1.2.3", "example.com/two": "v4.5.6", "example.com/two/three": "v7.8.9"} {
		if got, err := requiredVersion(mod, path); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %s", path, got, err, want)
		}
	}
	if _, err := requiredVersion(mod, "example.com"); err == nil {
		t.Error("a prefix of a path was found")
	}
}

func TestKubernetesIsStampedWithItsVersion(t *testing.T) {
	stamp := versions{kubernetes: "v1.37.2"}.kubernetesStamp()
	for _, want := range []string{"version.gitVersion=v1.37.2", "version.gitMajor=1", "version.gitMinor=37"} {
		if !strings.Contains(stamp, want) {
			t.Errorf("%q lacks %s", stamp, want)
		}
	}
}
