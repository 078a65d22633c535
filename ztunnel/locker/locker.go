// Package locker keeps secrets for the next process of the node: in a folder
// that is in memory, and for nobody else to open.
//
//	locker.go  the folder, and what makes it one
//	files.go   one secret a file
//
// A node whose ztunnel is restarted finds its keys and certificates here and
// needs no authority; a node that is restarted finds nothing.
//
// Invariants: nothing is written, and nothing read, unless the folder is on
// tmpfs or ramfs, ours, and closed to others; a secret is read as it was
// written or removed; what cannot be written is tried again, and reported.
//
// What a secret is worth is its owner's decision.
package locker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// folderMode: the folder is root's alone.
const folderMode = 0o700

// retryInterval is how soon a secret that could not be written is tried again.
const retryInterval = 2 * time.Second

// Locker is one folder of secrets.
type Locker struct {
	// Fixed after New.
	dir    string
	logger *slog.Logger
	// inMemory tells whether an open folder is in memory, and what it is on.
	inMemory func(*os.File) (on string, yes bool, err error)

	// Guarded by mu, which is held while files are written and removed, too.
	mu      sync.Mutex
	unsaved map[string][]byte // by name
	problem error
}

// New returns a locker in a folder, which is made when it is first written to.
func New(dir string, logger *slog.Logger) *Locker {
	return &Locker{dir: dir, logger: logger, inMemory: onMemory, unsaved: make(map[string][]byte)}
}

// Run writes again what could not be written, until ctx ends.
func (l *Locker) Run(ctx context.Context) error {
	ticker := time.NewTicker(retryInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			l.retry()
		}
	}
}

// Problems of the node, coded.
func (l *Locker) Problems() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.problem == nil {
		return nil
	}
	code := "KeysNotKept"
	if errors.Is(l.problem, errOnDisk) {
		code = "KeysNotInMemory"
	}
	return []string{fmt.Sprintf("%s: %v; until that is mended a restart of this ztunnel has to ask the controller for all certificates", code, l.problem)}
}

// noteLocked remembers the outcome of writing.
func (l *Locker) noteLocked(err error) {
	if err != nil && l.problem == nil {
		l.logger.Error("keys and certificates not kept for the next process", "error", err)
	}
	if err == nil && l.problem != nil {
		l.logger.Info("keys and certificates kept for the next process again")
	}
	l.problem = err
}

// errOnDisk: keys do not go where they would outlive the node's power.
var errOnDisk = errors.New("not in memory")

// open returns the folder, once it is proven to be one for secrets.
func (l *Locker) open(create bool) (*os.Root, error) {
	if create {
		if err := os.Mkdir(l.dir, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make folder for keys: %w", err)
		}
	}
	// The name itself, not what a link of that name leads to.
	if info, err := os.Lstat(l.dir); err != nil {
		return nil, fmt.Errorf("open folder for keys: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("folder for keys %s is no folder but %s", l.dir, info.Mode())
	}
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, fmt.Errorf("open folder for keys: %w", err)
	}
	if err := l.prove(root); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// prove checks the folder that is open, whatever its name leads to by now.
func (l *Locker) prove(root *os.Root) error {
	folder, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("open folder for keys: %w", err)
	}
	defer folder.Close()
	on, yes, err := l.inMemory(folder)
	if err != nil {
		return fmt.Errorf("find the file system of %s: %w", l.dir, err)
	}
	if !yes {
		return fmt.Errorf("folder for keys %s is on %s, %w: mount a tmpfs at the node's /run", l.dir, on, errOnDisk)
	}
	info, err := folder.Stat()
	if err != nil {
		return fmt.Errorf("open folder for keys: %w", err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("folder for keys %s belongs to user %d, not to %d", l.dir, stat.Uid, os.Geteuid())
	}
	if info.Mode().Perm() != folderMode {
		if err := folder.Chmod(folderMode); err != nil {
			return fmt.Errorf("close folder for keys %s to others: %w", l.dir, err)
		}
	}
	return nil
}

// onMemory asks the kernel what a folder is on.
func onMemory(folder *os.File) (on string, yes bool, err error) {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(folder.Fd()), &stat); err != nil {
		return "", false, err
	}
	// The type's width and sign differ between architectures.
	switch uint32(stat.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return "memory", true, nil
	}
	return fmt.Sprintf("a file system of type %#x", uint32(stat.Type)), false, nil
}
