package cniinstall

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/atomicfile"
)

// errNoConfiguration: the folder is empty, as far as container runtimes are concerned.
var errNoConfiguration = errors.New("no CNI configuration")

// activeFile returns the configuration that container runtimes use: the first
// by name, whatever its kind.
func activeFile(dir string) (string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		if p, replaced := errors.AsType[*Problem](noConfiguration(dir)); replaced && p.Code == codeFolderReplaced {
			return "", p
		}
		return "", problem("CNIConfigUnreadable", "%v", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() && isConfiguration(entry.Name()) {
			return filepath.Join(dir, entry.Name()), nil
		}
	}
	return "", noConfiguration(dir)
}

const codeFolderReplaced = "CNIFolderReplaced"

// noConfiguration tells an empty folder apart from one that is no longer the
// node's: a folder that is removed and made anew is not seen through the mount
// of the old one.
func noConfiguration(dir string) error {
	var stat syscall.Stat_t
	if err := syscall.Stat(dir, &stat); err == nil && stat.Nlink == 0 {
		return problem(codeFolderReplaced, "%s was removed, and perhaps made anew, on the node: delete this node's ztunnel pod, so that its successor sees the new one", dir)
	}
	return fmt.Errorf("%w: %w", errNoConfiguration, problem("CNIConfigMissing", "%s holds no CNI configuration yet: the cluster's network plugin writes it", dir))
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
func (i *Installer) convert(now time.Time, path string, content []byte) (file string, err error) {
	list, err := chainOf(content, i.config.Entry)
	if err != nil {
		return "", problem("CNIConfigMalformed", "%s: %v", path, err)
	}
	if err := i.restoring(&i.chain, now, path); err != nil {
		return "", err
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
	i.restored(&i.chain, now, path)
	return file, nil
}

// chainPath is of the conflist made of a lone configuration. It sorts where
// that did.
func chainPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
}
