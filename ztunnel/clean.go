package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/ztunnel/cniinstall"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// cleanNode takes everything off a node, in the order in which nothing dangles:
// the chain entry, so that no new pod waits for a ztunnel that will not come;
// the pins, which gives captured pods plain networking back; the binary, which
// no configuration names any more; then what was remembered. It can be repeated.
func cleanNode(getenv func(string) string, out io.Writer) error {
	e := &environment{get: getenv}
	f := readFolders(e)
	if err := errors.Join(e.problems...); err != nil {
		return err
	}
	changed, err := cniinstall.RemoveEntries(f.CNIConfig)
	for _, file := range changed {
		fmt.Fprintf(out, "removed the CNI chain entry from %s\n", file)
	}
	if err != nil {
		return err
	}
	if err := redirect.Remove(f.redirection()); err != nil {
		return err
	}
	fmt.Fprintf(out, "removed the programs and the pins in %s: captured pods have plain networking\n", f.pins())
	if err := cniinstall.RemovePlugin(f.CNIBinDir, f.CNIConfig); err != nil {
		return err
	}
	fmt.Fprintf(out, "removed the CNI plugin from %s\n", f.CNIBinDir)
	for _, dir := range []string{f.RunDir, f.StateDir} {
		if err := empty(dir); err != nil {
			return err
		}
		fmt.Fprintf(out, "emptied %s\n", dir)
	}
	return nil
}

// empty removes what is in a folder, which itself may be a mount.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("empty folder: %w", err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("empty folder: %w", err)
		}
	}
	return nil
}
