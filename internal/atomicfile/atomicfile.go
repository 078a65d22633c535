// Package atomicfile writes files that others read at any time, and that a
// power cut must not tear: a reader sees the old content or the new, whole.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces the file at path. The content is on disk before the name
// points to it, and the name before Write returns.
func Write(path string, content []byte, mode fs.FileMode) error {
	staged, err := Stage(path, content, mode)
	if err != nil {
		return err
	}
	return staged.Commit()
}

// Sweep removes what writers of files in a folder left when they were killed.
// Nobody may be writing there.
func Sweep(dir string) error {
	leftovers, err := filepath.Glob(filepath.Join(dir, ".*.tmp"))
	if err != nil {
		return fmt.Errorf("sweep %s: %w", dir, err)
	}
	var errs []error
	for _, path := range leftovers {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sweep %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// Staged is content on disk that is to replace a file.
type Staged struct{ temporary, path string }

// Stage writes content beside the file that it is to replace. Commit or Discard
// ends it.
func Stage(path string, content []byte, mode fs.FileMode) (*Staged, error) {
	// The dot keeps it from those that read a whole folder, such as CNI runtimes.
	temporary, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	staged := &Staged{temporary: temporary.Name(), path: path}
	if err := fill(temporary, content, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), staged.Discard())
	}
	return staged, nil
}

// Chown gives the file to be an owner.
func (s *Staged) Chown(uid, gid int) error { return os.Chown(s.temporary, uid, gid) }

// Commit puts the content in its place.
func (s *Staged) Commit() error {
	if err := os.Rename(s.temporary, s.path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", s.path, err), s.Discard())
	}
	return syncDir(filepath.Dir(s.path))
}

// Discard leaves the file as it was.
func (s *Staged) Discard() error { return os.Remove(s.temporary) }

func fill(file *os.File, content []byte, mode fs.FileMode) error {
	_, err := file.Write(content)
	if err == nil {
		err = file.Chmod(mode)
	}
	if err == nil {
		err = file.Sync()
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
