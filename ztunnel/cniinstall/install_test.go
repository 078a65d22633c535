package cniinstall

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// node is a node's CNI folders, and the image that the plugin comes from.
type node struct {
	t                *testing.T
	image, bin, conf string
	now              time.Time
	*Installer
}

// once is one look, long after the last: nothing is held back.
func (n *node) once() {
	n.now = n.now.Add(contestWindow)
	n.Installer.once(n.now)
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, now: time.Now(), image: t.TempDir(), bin: t.TempDir(), conf: t.TempDir()}
	n.write(filepath.Join(n.image, "plugin"), "the plugin")
	n.Installer = New(Config{
		Plugin: filepath.Join(n.image, "plugin"), BinDir: n.bin, ConfDir: n.conf, Entry: entry, Logger: slog.New(slog.DiscardHandler),
	})
	return n
}

func (n *node) write(path, content string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) configure(name, content string) {
	n.t.Helper()
	n.write(filepath.Join(n.conf, name), content)
}

func (n *node) read(name string) string {
	n.t.Helper()
	content, err := os.ReadFile(filepath.Join(n.conf, name))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(content)
}

func (n *node) binary() string { return filepath.Join(n.bin, cniproto.PluginType) }

func (n *node) files() string {
	n.t.Helper()
	entries, err := os.ReadDir(n.conf)
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestInstallsIntoTheFirstChain(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.configure("20-other.conflist", chain)
	n.configure("05-notes.txt", "not a configuration")
	n.once()
	if p := n.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	if n.read("10-net.conflist") != mustWith(t, chain, entry) {
		t.Errorf("first chain:\n%s", n.read("10-net.conflist"))
	}
	if n.read("20-other.conflist") != chain {
		t.Error("a chain that is not in use was changed")
	}
	stat, err := os.Stat(n.binary())
	if err != nil || stat.Mode().Perm() != 0o755 {
		t.Errorf("binary: %v, %v", stat, err)
	}
	if stat, err := os.Stat(filepath.Join(n.conf, "10-net.conflist")); err != nil || stat.Mode().Perm() != 0o640 {
		t.Errorf("mode of the chain changed: %v, %v", stat, err)
	}
	select {
	case <-n.Installed():
	default:
		t.Error("not said to be installed")
	}
	if got := n.files(); got != "05-notes.txt 10-net.conflist 20-other.conflist" {
		t.Errorf("files %s", got)
	}
}

func TestSurvivesWhatOthersDo(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.once()
	rewritten := strings.Replace(chain, "1400.0", "1500", 1)
	for _, c := range []struct {
		name string
		do   func()
		file string
		want string
	}{
		{"rewrite", func() { n.configure("10-net.conflist", rewritten) }, "10-net.conflist", rewritten},
		{"a new first chain", func() { n.configure("05-new.conflist", chain) }, "05-new.conflist", chain},
		{"its removal", func() { os.Remove(filepath.Join(n.conf, "05-new.conflist")) }, "10-net.conflist", rewritten},
		{"removal of the binary", func() { os.Remove(n.binary()) }, "10-net.conflist", rewritten},
		{"another binary", func() { n.write(n.binary(), "something else") }, "10-net.conflist", rewritten},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do()
			n.once()
			if p := n.Problems(); len(p) > 0 {
				t.Fatal(p)
			}
			if n.read(c.file) != mustWith(t, c.want, entry) {
				t.Errorf("%s:\n%s", c.file, n.read(c.file))
			}
			if content, err := os.ReadFile(n.binary()); err != nil || string(content) != "the plugin" {
				t.Errorf("binary %q, %v", content, err)
			}
		})
	}
}

func TestMalformedChainStaysAndIsReported(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain[:40])
	n.once()
	problems := n.Problems()
	if len(problems) != 1 || !strings.HasPrefix(problems[0], "CNIConfigMalformed: ") || !strings.Contains(problems[0], "10-net.conflist") {
		t.Errorf("problems %q", problems)
	}
	if n.read("10-net.conflist") != chain[:40] {
		t.Error("the malformed file was changed")
	}
	n.configure("10-net.conflist", chain)
	n.once()
	if p := n.Problems(); len(p) > 0 {
		t.Errorf("repaired, still %q", p)
	}
}

func TestNoConfigurationYet(t *testing.T) {
	n := newNode(t)
	n.once()
	if p := n.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "CNIConfigMissing: ") {
		t.Errorf("problems %q", p)
	}
}

func TestNoEntryWithoutItsBinary(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	if err := os.Remove(filepath.Join(n.image, "plugin")); err != nil {
		t.Fatal(err)
	}
	n.once()
	if p := n.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "CNIBinaryNotInstalled: ") {
		t.Errorf("problems %q", p)
	}
	if n.read("10-net.conflist") != chain {
		t.Error("the chain names a binary that is not there")
	}
}

func TestRewritesAtTheSameTimeAreNotLost(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			n.once()
		}
	})
	last := ""
	for i := range 200 {
		last = strings.Replace(chain, "1400.0", fmt.Sprint(i), 1)
		// As network operators do it: a new file, renamed over the old one.
		n.configure(".new", last)
		if err := os.Rename(filepath.Join(n.conf, ".new"), filepath.Join(n.conf, "10-net.conflist")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	cancel()
	group.Wait()
	n.once()
	if n.read("10-net.conflist") != mustWith(t, last, entry) {
		t.Errorf("the last rewrite, with the entry, is not there:\n%s", n.read("10-net.conflist"))
	}
}

func TestLoneConfigurationIsConvertedAndPutBack(t *testing.T) {
	const lone = `{"cniVersion":"0.3.1","name":"net","type":"bridge","ipam":{"type":"host-local"}}`
	n := newNode(t)
	n.configure("10-net.conf", lone)
	n.configure("20-other.conflist", chain)
	n.once()
	if p := n.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	if active, err := activeFile(n.conf); err != nil || filepath.Base(active) != "10-net.conflist" {
		t.Errorf("container runtimes use %s, %v", active, err)
	}
	plugins, err := parseChain([]byte(n.read("10-net.conflist")))
	if err != nil || len(plugins) != 2 || plugins[0].kind != "bridge" || plugins[1].kind != cniproto.PluginType {
		t.Errorf("chain %+v, %v", plugins, err)
	}
	n.once()
	if _, err := RemoveEntries(n.conf); err != nil {
		t.Fatal(err)
	}
	if n.read("10-net.conf") != lone || n.files() != "10-net.conf 20-other.conflist" {
		t.Errorf("put back as %s (files %s)", n.read("10-net.conf"), n.files())
	}
}

func TestRemoval(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.once()
	n.configure("05-new.conflist", chain)
	n.once() // two chains hold the entry now
	n.write(filepath.Join(n.bin, ".ambit-cni.123.tmp"), "half a plugin")
	if err := RemovePlugin(n.bin, n.conf); err == nil {
		t.Error("the binary was removed while chains name it")
	}
	changed, err := RemoveEntries(n.conf)
	if err != nil || len(changed) != 2 {
		t.Errorf("changed %q, %v", changed, err)
	}
	if err := RemovePlugin(n.bin, n.conf); err != nil {
		t.Error(err)
	}
	if n.read("10-net.conflist") != chain || n.read("05-new.conflist") != chain {
		t.Error("chains are not as before")
	}
	if entries, err := os.ReadDir(n.bin); err != nil || len(entries) > 0 {
		t.Errorf("left in the folder of plugins: %v, %v", entries, err)
	}
	// Once more, and on a node that never had any of it.
	for _, dir := range []string{n.conf, filepath.Join(n.conf, "absent")} {
		if changed, err := RemoveEntries(dir); err != nil || len(changed) > 0 {
			t.Errorf("again: changed %q, %v", changed, err)
		}
		if err := RemovePlugin(n.bin, dir); err != nil {
			t.Error(err)
		}
	}
}

func TestMalformedChainThatNamesUsKeepsTheBinary(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.once()
	torn := strings.TrimSuffix(n.read("10-net.conflist"), "}\n")
	n.configure("10-net.conflist", torn)
	if _, err := RemoveEntries(n.conf); err == nil || !strings.Contains(err.Error(), "10-net.conflist") {
		t.Errorf("error %v", err)
	}
	if err := RemovePlugin(n.bin, n.conf); err == nil {
		t.Error("the binary was removed")
	}
	if _, err := os.Stat(n.binary()); err != nil {
		t.Error(err)
	}
	if n.read("10-net.conflist") != torn {
		t.Error("the malformed file was changed")
	}
}

func TestRunLeavesTheEntryInPlace(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	<-n.Installed()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n.read("10-net.conflist") != mustWith(t, chain, entry) {
		t.Error("the entry went with the process")
	}
	if _, err := os.Stat(n.binary()); err != nil {
		t.Error(fs.ErrNotExist)
	}
}
