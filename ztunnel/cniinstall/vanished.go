package cniinstall

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/atomicfile"
)

// A folder without any configuration starts no pod, and the next to be written
// comes without the gate. So the one that was in use is put back, under its
// name, with a mark beside it: as soon as the network plugin writes another, it
// goes again, for it may sort before that one.

const (
	// vanishedFor is what somebody who replaces a configuration by removing it
	// first has for the second half.
	vanishedFor = 300 * time.Millisecond
	// restoredSuffix marks a configuration that was put back. Container runtimes
	// do not read a file of that name.
	restoredSuffix = ".ambit-restored"
)

// vanished is what to put back.
type vanished struct {
	path    string
	content []byte
	mode    fs.FileMode
}

// remember keeps the configuration that is in place, with the entry.
func (i *Installer) remember(path string) {
	content, err := os.ReadFile(path)
	if err != nil || !i.holdsEntry(content) {
		return
	}
	if stat, err := os.Stat(path); err == nil {
		i.last = vanished{path: path, content: content, mode: stat.Mode().Perm()}
	}
}

func (i *Installer) holdsEntry(content []byte) bool {
	edited, err := withEntry(content, i.config.Entry)
	return err == nil && bytes.Equal(edited, content)
}

// putBackVanished restores the configuration that was in use, where there is
// none at all any more. missing says so.
func (i *Installer) putBackVanished(now time.Time, missing error) (file string, err error) {
	if i.last.path == "" {
		return "", missing // nothing was ever in place
	}
	if i.absent.IsZero() {
		i.absent = now
	}
	problem, wait := asProblem(missing), vanishedFor-now.Sub(i.absent)
	if wait > 0 {
		return "", &pausedError{Problem: problem, wait: wait}
	}
	if err := i.restoring(&i.chain, now, i.last.path); err != nil {
		return "", err
	}
	if err := atomicfile.Write(i.last.path+restoredSuffix, []byte("put back by ambit: its configuration was removed and no other was there\n"), 0o600); err != nil {
		return "", err
	}
	if err := atomicfile.Write(i.last.path, i.last.content, i.last.mode); err != nil {
		return "", err
	}
	i.restored(&i.chain, now, i.last.path)
	return i.last.path, nil
}

// withdrawRestored takes a configuration that was put back out again when there
// is another one by now, and returns the one that container runtimes use then.
func (i *Installer) withdrawRestored(active string) (string, error) {
	marks, err := filepath.Glob(filepath.Join(i.config.ConfDir, "*"+restoredSuffix))
	if err != nil || len(marks) == 0 {
		return active, nil
	}
	for _, mark := range marks {
		path := strings.TrimSuffix(mark, restoredSuffix)
		others, err := othersThan(i.config.ConfDir, path)
		if err != nil {
			return "", err
		}
		if others == 0 && i.unchanged(path) {
			continue
		}
		// Written by its owner since, it is his again.
		if others > 0 && i.unchanged(path) {
			if err := removeIfThere(path); err != nil {
				return "", err
			}
			i.config.Logger.Info("CNI configuration that had been put back is removed: there is another", "file", path)
		}
		if err := removeIfThere(mark); err != nil {
			return "", err
		}
	}
	return activeFile(i.config.ConfDir)
}

// unchanged tells whether a file is as it was put back. After a restart that
// cannot be known, and a file with the entry and a mark is taken for it.
func (i *Installer) unchanged(path string) bool {
	content, err := os.ReadFile(path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	if i.last.path == path {
		return bytes.Equal(content, i.last.content)
	}
	return i.holdsEntry(content)
}

// othersThan counts the configurations of a folder besides one.
func othersThan(dir, path string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, problem("CNIConfigUnreadable", "%v", err)
	}
	others := 0
	for _, entry := range entries {
		if !entry.IsDir() && isConfiguration(entry.Name()) && entry.Name() != filepath.Base(path) {
			others++
		}
	}
	return others, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
