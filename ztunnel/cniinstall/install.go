// Package cniinstall keeps Ambit's link in a node's CNI chain.
//
//	binary.go    the plugin's binary, into the folder of CNI plugins
//	chain.go     its entry, into the text of a conflist (pure)
//	folder.go    which configuration is in use, and one put in its place
//	install.go   both, now and after whatever others do to the folders
//	watch.go     when others do something: inotify, and polling besides
//	contest.go   how fast, where another keeps undoing it (pure)
//	vanished.go  the only configuration, after somebody removed it
//	remove.go    all of it out again: the entry first, the binary last
//
// Invariants: a conflist never names the plugin while its binary is not there;
// a file is replaced whole or not at all; what is not understood is not
// touched, and reported; what others undo is there again within a second,
// however often they do it; the entry outlives this process, whose absence the
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
	"sync"
	"time"

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

// pollInterval is how long another's rewrite can go unnoticed where the system
// gives no watch.
const pollInterval = 500 * time.Millisecond

// Installer keeps one node's chain entry in place.
type Installer struct {
	// Fixed after New.
	config    Config
	installed chan struct{}
	// follow tells of changes, where it can: follow in watch.go.
	follow func(ctx context.Context, changed chan<- struct{})

	// Owned by Run.
	binary, chain contest
	absent        time.Time // since when there is no configuration at all
	last          vanished

	// Guarded by mu.
	mu       sync.Mutex
	problems []*Problem
	file     string // that holds the entry
	copied   fs.FileInfo
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
	return &Installer{
		config: config, installed: make(chan struct{}),
		follow: func(ctx context.Context, changed chan<- struct{}) {
			follow(ctx, []string{config.ConfDir, config.BinDir}, changed, config.Logger)
		},
	}
}

// Run installs, and restores what others undo, until the context ends. It
// leaves the entry in place.
func (i *Installer) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		i.follow(ctx, changed)
	}()
	defer func() { <-followed }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-changed:
			select {
			case <-time.After(settle):
			case <-ctx.Done():
				return nil
			}
		}
		timer.Reset(i.once(time.Now()))
	}
}

// once makes everything as it should be, and returns when to look again at the
// latest.
func (i *Installer) once(now time.Time) time.Duration {
	again := pollInterval
	var problems []*Problem
	file, err := i.install(now)
	if err != nil {
		problems = append(problems, asProblem(err))
		if p, ok := errors.AsType[*pausedError](err); ok {
			again = min(again, p.wait)
		}
	} else {
		problems = i.contests(now, file)
	}
	i.settle(file, err == nil, problems)
	return again
}

// contests are the files that others keep writing, restored or not.
func (i *Installer) contests(now time.Time, file string) []*Problem {
	var problems []*Problem
	if times, yes := i.chain.contested(now); yes {
		problems = append(problems, contestProblem(file, times))
	}
	if times, yes := i.binary.contested(now); yes {
		problems = append(problems, contestProblem(i.target(), times))
	}
	return problems
}

func contestProblem(path string, times int) *Problem {
	return problem("CNIConfigContested", "something else on the node keeps undoing %s: restored %d times within %s; "+
		"find what writes it, and have it leave the %s entry and binary alone", path, times, contestWindow, cniproto.PluginType)
}

// settle makes an outcome known.
func (i *Installer) settle(file string, placed bool, problems []*Problem) {
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.problems
	i.problems, i.file = problems, file
	for _, p := range problems {
		if !slices.ContainsFunc(before, func(b *Problem) bool { return b.Code == p.Code }) {
			i.config.Logger.Error("CNI chain entry in trouble", "code", p.Code, "error", p.Detail)
		}
	}
	if !placed {
		return
	}
	select {
	case <-i.installed:
		if len(before) > 0 && len(problems) == 0 {
			i.config.Logger.Info("CNI chain entry in place again", "file", file)
		}
	default:
		i.config.Logger.Info("CNI chain entry in place", "file", file)
		close(i.installed)
	}
}

// pausedError: a file is not as it should be, and is not restored just now.
type pausedError struct {
	*Problem
	wait time.Duration
}

func (e *pausedError) Unwrap() error { return e.Problem }

func asProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	return problem("CNINotInstalled", "%v", err)
}

// restoring says whether a file may be put right now: nil, or until when that
// waits. What was never in place is placed at once.
func (i *Installer) restoring(c *contest, now time.Time, path string) error {
	wait := c.wait(now)
	if wait <= 0 {
		return nil
	}
	return &pausedError{Problem: contestProblem(path, len(c.restored)), wait: wait}
}

// Installed is closed once the entry has been in place.
func (i *Installer) Installed() <-chan struct{} { return i.installed }

// isInstalled tells whether the entry was in place once.
func (i *Installer) isInstalled() bool {
	select {
	case <-i.installed:
		return true
	default:
		return false
	}
}

// Problems of the node, coded; none while the entry is in place and left there.
func (i *Installer) Problems() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var all []string
	for _, p := range i.problems {
		all = append(all, p.Error())
	}
	return all
}

// File is the configuration that holds the entry; empty if none does.
func (i *Installer) File() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.file
}

func (i *Installer) install(now time.Time) (file string, err error) {
	if err := i.copyPlugin(now); err != nil {
		if _, paused := errors.AsType[*pausedError](err); paused {
			return "", err
		}
		return "", problem("CNIBinaryNotInstalled", "%v", err)
	}
	active, err := activeFile(i.config.ConfDir)
	if errors.Is(err, errNoConfiguration) {
		return i.putBackVanished(now, err)
	}
	if err != nil {
		return "", err
	}
	i.absent = time.Time{}
	if active, err = i.withdrawRestored(active); err != nil {
		return "", err
	}
	content, err := os.ReadFile(active)
	if err != nil {
		return "", problem("CNIConfigUnreadable", "%v", err)
	}
	if filepath.Ext(active) == ".conflist" {
		file, err = i.edit(now, active, content)
	} else {
		file, err = i.convert(now, active, content)
	}
	if err == nil {
		i.remember(file)
	}
	return file, err
}

// edit has the entry in a conflist.
func (i *Installer) edit(now time.Time, active string, content []byte) (file string, err error) {
	edited, err := withEntry(content, i.config.Entry)
	if err != nil {
		return "", problem("CNIConfigMalformed", "%s: %v", active, err)
	}
	if bytes.Equal(edited, content) {
		return active, nil
	}
	if err := i.restoring(&i.chain, now, active); err != nil {
		return "", err
	}
	if err := replace(active, content, edited); err != nil {
		return "", err
	}
	i.restored(&i.chain, now, active)
	return active, nil
}

// restored counts what somebody else had undone.
func (i *Installer) restored(c *contest, now time.Time, path string) {
	if !i.isInstalled() {
		return
	}
	c.note(now)
	i.config.Logger.Warn("CNI gate restored: another has written, or removed, its file", "file", path)
}
