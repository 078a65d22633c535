package cniinstall

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// RemoveEntries takes our entry out of every configuration of a folder, and
// puts back what was converted. It returns the files that it changed. A file
// that cannot be understood and speaks of us is an error, and stays.
func RemoveEntries(confDir string) (changed []string, err error) {
	entries, err := os.ReadDir(confDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove chain entries: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		path := filepath.Join(confDir, entry.Name())
		if strings.HasSuffix(path, restoredSuffix) {
			errs = append(errs, removeIfThere(path)) // the configuration stays: it is the only one
		}
		if entry.IsDir() || filepath.Ext(path) != ".conflist" {
			continue
		}
		did, err := removeEntry(path)
		if err != nil {
			errs = append(errs, err)
		}
		if did {
			changed = append(changed, path)
		}
	}
	return changed, errors.Join(errs...)
}

func removeEntry(path string) (changed bool, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("remove chain entry: %w", err)
	}
	if !bytes.Contains(content, []byte(`"`+cniproto.PluginType+`"`)) {
		return false, nil
	}
	edited, err := withoutEntry(content)
	if err != nil {
		return false, problem("CNIConfigMalformed", "%s: %v", path, err)
	}
	if saved := savedOf(path); saved != "" && isAlone(edited) {
		return true, putBack(saved, path)
	}
	if bytes.Equal(edited, content) {
		return false, nil
	}
	return true, replace(path, content, edited)
}

// savedOf returns the configuration that a chain was made of, if it was.
func savedOf(chain string) string {
	for _, ext := range []string{".conf", ".json"} {
		saved := strings.TrimSuffix(chain, ".conflist") + ext + savedSuffix
		if _, err := os.Stat(saved); err == nil {
			return saved
		}
	}
	return ""
}

// isAlone tells whether nobody else has joined a chain that was made of a lone
// configuration.
func isAlone(chain []byte) bool {
	plugins, err := parseChain(chain)
	return err == nil && len(plugins) == 1
}

// putBack restores a lone configuration before its chain goes: there is one at
// every moment.
func putBack(saved, chain string) error {
	if err := os.Rename(saved, strings.TrimSuffix(saved, savedSuffix)); err != nil {
		return fmt.Errorf("put back %s: %w", saved, err)
	}
	if err := os.Remove(chain); err != nil {
		return fmt.Errorf("remove %s: %w", chain, err)
	}
	return nil
}

// RemovePlugin removes the binary, and copies that a crash left half-way. It
// refuses while a configuration names it: every pod of the node would fail.
func RemovePlugin(binDir, confDir string) error {
	entries, err := os.ReadDir(confDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove plugin: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(confDir, entry.Name())
		content, err := os.ReadFile(path)
		if err == nil && isConfiguration(path) && bytes.Contains(content, []byte(`"`+cniproto.PluginType+`"`)) {
			return fmt.Errorf("remove plugin: %s still names it", path)
		}
	}
	leftovers, err := filepath.Glob(filepath.Join(binDir, "."+cniproto.PluginType+".*.tmp"))
	if err != nil {
		return fmt.Errorf("remove plugin: %w", err)
	}
	for _, path := range append(leftovers, filepath.Join(binDir, cniproto.PluginType)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove plugin: %w", err)
		}
	}
	return nil
}
