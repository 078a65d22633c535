package locker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/statefile"
)

// kind of file. A secret is a key and a chain of certificates, a few KiB.
var kind = statefile.Kind{Name: "secret", Version: 1, MaxBytes: 64 << 10}

const (
	suffix = ".secret"
	// newSuffix is of a file that is being written. It is in memory, so that no
	// power cut leaves half a one; a killed process does.
	newSuffix = ".new"
	fileMode  = 0o600
)

// fileOf makes a file's name of a secret's, which may be long and hold slashes.
func fileOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:]) + suffix
}

// Load returns a secret, nil if there is none. One that cannot be read as it
// was written is removed.
func (l *Locker) Load(name string) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	root, err := l.open(false)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.noteLocked(err)
		}
		return nil
	}
	defer root.Close()
	content, err := read(root, fileOf(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		l.logger.Warn("kept key and certificate not usable: removed", "secret", name, "error", err)
		l.removeLocked(root, fileOf(name))
		return nil
	}
	return content
}

func read(root *os.Root, file string) ([]byte, error) {
	opened, err := root.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	if err := statefile.Check(opened); err != nil {
		return nil, err
	}
	all, err := io.ReadAll(io.LimitReader(opened, 2*kind.MaxBytes))
	if err != nil {
		return nil, err
	}
	return kind.Decode(all)
}

// Save keeps a secret, now or as soon as that can be done.
func (l *Locker) Save(name string, secret []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsaved[name] = secret
	l.saveLocked()
}

func (l *Locker) retry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.unsaved) > 0 {
		l.saveLocked()
	}
}

// saveLocked writes all that is not written yet.
func (l *Locker) saveLocked() {
	root, err := l.open(true)
	if err != nil {
		l.noteLocked(err)
		return
	}
	defer root.Close()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(l.unsaved)) {
		if err := write(root, fileOf(name), kind.Encode(l.unsaved[name])); err != nil {
			errs = append(errs, fmt.Errorf("keep %s in %s: %w", name, l.dir, err))
			continue
		}
		delete(l.unsaved, name)
	}
	l.noteLocked(errors.Join(errs...))
}

// write replaces a file whole: a process that is killed leaves the old one.
func write(root *os.Root, file string, content []byte) error {
	fresh := file + newSuffix
	if err := root.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	opened, err := root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = opened.Write(content)
	if err = errors.Join(err, opened.Close()); err == nil {
		err = root.Rename(fresh, file)
	}
	if err != nil {
		return errors.Join(err, root.Remove(fresh))
	}
	return nil
}

// Remove forgets a secret.
func (l *Locker) Remove(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.unsaved, name)
	if root, err := l.open(false); err == nil {
		defer root.Close()
		l.removeLocked(root, fileOf(name))
	}
}

// Retain removes whatever is in the folder but the secrets of these names.
func (l *Locker) Retain(names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.unsaved, func(name string, _ []byte) bool { return !slices.Contains(names, name) })
	root, err := l.open(false)
	if err != nil {
		return // nothing was kept, or nothing of it can be used
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		l.logger.Warn("kept keys not listed", "folder", l.dir, "error", err)
		return
	}
	keep := make(map[string]bool, len(names))
	for _, name := range names {
		keep[fileOf(name)] = true
	}
	for _, entry := range entries {
		ours := strings.HasSuffix(entry.Name(), suffix) || strings.HasSuffix(entry.Name(), suffix+newSuffix)
		if ours && !keep[entry.Name()] {
			l.removeLocked(root, entry.Name())
		}
	}
}

func (l *Locker) removeLocked(root *os.Root, file string) {
	if err := root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.logger.Warn("kept key not removed", "folder", l.dir, "file", file, "error", err)
	}
}
