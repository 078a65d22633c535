// Package cniinstall keeps Ambit's link in a node's CNI chain.
//
//	binary.go  the plugin's binary, into the folder of CNI plugins
//	chain.go   its entry, into the text of a conflist (pure)
//	install.go both, now and after whatever others do to the folder
//	remove.go  both out again: the entry first, the binary last
//
// Invariants: a conflist never names the plugin while its binary is not there;
// a file is replaced whole or not at all; what is not understood is not
// touched, and reported; the entry outlives this process, whose absence the
// gate is there to notice.
package cniinstall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/atomicfile"
	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// Config of an installation.
type Config struct {
	// Plugin is the plugin's binary, to be copied.
	Plugin string
	// BinDir and ConfDir are the node's folders of CNI plugins and their configuration.
	BinDir, ConfDir string
	Entry           cniproto.ChainEntry
	Logger          *slog.Logger
}

// pollInterval is how long another's rewrite of the conflist can go unnoticed.
// Pods that start in between are captured like running ones.
const pollInterval = time.Second

// Installer keeps one node's chain entry in place.
type Installer struct {
	// Fixed after New.
	config    Config
	installed chan struct{}

	// Guarded by mu.
	mu      sync.Mutex
	problem *Problem
	file    string // that holds the entry
	copied  fs.FileInfo
}

// Problem is why the entry is not in place.
type Problem struct {
	// Code is one CamelCase word.
	Code   string
	Detail string
}

func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

func problem(code, format string, args ...any) *Problem {
	return &Problem{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// New returns an installer; Run makes it work.
func New(config Config) *Installer {
	config.Entry.Type = cniproto.PluginType
	return &Installer{config: config, installed: make(chan struct{})}
}

// Run installs, and restores what others undo, until the context ends. It
// leaves the entry in place.
func (i *Installer) Run(ctx context.Context) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		i.once()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// once makes everything as it should be.
func (i *Installer) once() {
	file, err := i.install()
	i.mu.Lock()
	defer i.mu.Unlock()
	was := i.problem
	i.problem, i.file = nil, file
	if err == nil {
		if was != nil {
			i.config.Logger.Info("CNI chain entry in place again", "file", file)
		}
		select {
		case <-i.installed:
		default:
			i.config.Logger.Info("CNI chain entry in place", "file", file)
			close(i.installed)
		}
		return
	}
	i.problem = asProblem(err)
	if was == nil || *was != *i.problem {
		i.config.Logger.Error("CNI chain entry not in place", "error", i.problem)
	}
}

func asProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	return problem("CNINotInstalled", "%v", err)
}

// Installed is closed once the entry has been in place.
func (i *Installer) Installed() <-chan struct{} { return i.installed }

// Problems of the node, coded; none while the entry is in place.
func (i *Installer) Problems() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.problem == nil {
		return nil
	}
	return []string{i.problem.Error()}
}

// File is the configuration that holds the entry; empty if none does.
func (i *Installer) File() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.file
}

func (i *Installer) install() (file string, err error) {
	if err := i.copyPlugin(); err != nil {
		return "", problem("CNIBinaryNotInstalled", "%v", err)
	}
	active, err := activeFile(i.config.ConfDir)
	if err != nil {
		return "", err
	}
	content, err := os.ReadFile(active)
	if err != nil {
		return "", problem("CNIConfigUnreadable", "%v", err)
	}
	if filepath.Ext(active) != ".conflist" {
		return i.convert(active, content)
	}
	edited, err := withEntry(content, i.config.Entry)
	if err != nil {
		return "", problem("CNIConfigMalformed", "%s: %v", active, err)
	}
	if bytes.Equal(edited, content) {
		return active, nil
	}
	return active, replace(active, content, edited)
}

// activeFile returns the configuration that container runtimes use: the first
// by name, whatever its kind.
func activeFile(dir string) (string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return "", problem("CNIConfigUnreadable", "%v", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() && isConfiguration(entry.Name()) {
			return filepath.Join(dir, entry.Name()), nil
		}
	}
	return "", problem("CNIConfigMissing", "%s holds no CNI configuration yet: the cluster's network plugin writes it", dir)
}

// isConfiguration tells by a file's name whether container runtimes read it.
func isConfiguration(name string) bool {
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
}

// errRewritten: someone else wrote the file while we were about to.
var errRewritten = errors.New("rewritten by someone else at this moment")

// replace puts an edited file in the place of the one it was made from, unless
// that has changed meanwhile. Mode and owner stay.
func replace(path string, from, to []byte) error {
	stat, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	staged, err := atomicfile.Stage(path, to, stat.Mode().Perm())
	if err != nil {
		return err
	}
	if owner, ok := stat.Sys().(*syscall.Stat_t); ok {
		err = staged.Chown(int(owner.Uid), int(owner.Gid))
	}
	// Looked at last: what others write from here to the rename, microseconds
	// later, is lost.
	now, readErr := os.ReadFile(path)
	if err = errors.Join(err, readErr); err == nil && !bytes.Equal(now, from) {
		err = errRewritten
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", path, err), staged.Discard())
	}
	return staged.Commit()
}

// savedSuffix hides a lone configuration from container runtimes while a chain
// made of it is in its place.
const savedSuffix = ".ambit-saved"

// convert puts a chain in the place of a lone plugin's configuration, which is
// kept beside it to be put back.
func (i *Installer) convert(path string, content []byte) (file string, err error) {
	list, err := chainOf(content, i.config.Entry)
	if err != nil {
		return "", problem("CNIConfigMalformed", "%s: %v", path, err)
	}
	stat, err := os.Stat(path)
	if err != nil {
		return "", problem("CNIConfigUnreadable", "%v", err)
	}
	file = chainPath(path)
	if err := atomicfile.Write(file, list, stat.Mode().Perm()); err != nil {
		return "", err
	}
	if err := os.Rename(path, path+savedSuffix); err != nil {
		return "", fmt.Errorf("put %s aside: %w", path, err)
	}
	return file, nil
}

// chainPath is of the conflist made of a lone configuration. It sorts where
// that did.
func chainPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
}
