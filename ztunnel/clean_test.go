package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

func TestCleanNodeLeavesNothingAndCanBeRepeated(t *testing.T) {
	root := t.TempDir()
	bpffs := netnstest.BPFFS(t)
	files := map[string]string{
		"bin/ambit-cni":             "the plugin",
		"bin/bridge":                "another's",
		"conf/10-net.conflist":      `{"name":"net","plugins":[{"type":"bridge"},{"type":"ambit-cni"}]}`,
		"state/pods.json":           "{}",
		"state/enrolment.json":      "{}",
		"run/cni.sock":              "",
		"state/.pods.json.1234.tmp": "half",
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := from(map[string]string{
		"CNI_BIN_DIR": filepath.Join(root, "bin"), "CNI_CONF_DIR": filepath.Join(root, "conf"),
		"STATE_DIR": filepath.Join(root, "state"), "RUN_DIR": filepath.Join(root, "run"), "BPFFS": bpffs, "HOST_PROC": "/proc", "HOST_NETNS": "/proc/self/ns/net", "NETNS_DIR": filepath.Join(root, "netns"),
	})
	for range 2 {
		var said strings.Builder
		if err := cleanNode(env, &said); err != nil {
			t.Fatal(err)
		}
		t.Log(said.String())
	}
	var left []string
	err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			left = append(left, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil || strings.Join(left, " ") != "bin/bridge conf/10-net.conflist" {
		t.Errorf("left %q, %v", left, err)
	}
	content, err := os.ReadFile(filepath.Join(root, "conf/10-net.conflist"))
	if err != nil || string(content) != `{"name":"net","plugins":[{"type":"bridge"}]}` {
		t.Errorf("chain %s, %v", content, err)
	}
}

func TestCleanNodeKeepsTheBinaryThatAChainNames(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{"ambit-cni": "the plugin", "10-net.conflist": `{"plugins":[{"type":"ambit-cni"`} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := cleanNode(from(map[string]string{"CNI_BIN_DIR": root, "CNI_CONF_DIR": root, "STATE_DIR": root + "/state", "RUN_DIR": root + "/run", "BPFFS": root}), &strings.Builder{})
	if err == nil || !strings.Contains(err.Error(), "CNIConfigMalformed") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "ambit-cni")); err != nil {
		t.Error(err)
	}
}
