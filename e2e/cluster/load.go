package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// load gives image tars to every node that is on, and keeps them for those
// that start later.
func (c *cluster) load(ctx context.Context, tars []string) error {
	for _, tar := range tars {
		name := filepath.Base(tar)
		if !strings.HasSuffix(name, ".tar") {
			return fmt.Errorf("load %s: want a file ending in .tar", tar)
		}
		if err := keepImage(tar, filepath.Join(c.images(), name)); err != nil {
			return fmt.Errorf("load %s: %w", tar, err)
		}
	}
	var wait sync.WaitGroup
	results := make([]error, len(nodes()))
	for i, n := range nodes() {
		if _, on := initPID(c.layout, n); !on {
			fmt.Fprintf(c.out, "%s: off, will import when it starts\n", n.name)
			continue
		}
		wait.Go(func() { results[i] = c.loadInto(ctx, n, tars) })
	}
	wait.Wait()
	return errors.Join(results...)
}

// keepImage copies a tar unless the copy is the same.
func keepImage(from, to string) error {
	hash, err := fileHash(from)
	if err != nil {
		return err
	}
	if kept, err := fileHash(to); err == nil && kept == hash {
		return nil
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	return replaceFile(to, content, 0o644)
}

// loadInto imports tars into one running node, with the record that the
// node's own start reads (node.go).
func (c *cluster) loadInto(ctx context.Context, n machine, tars []string) error {
	for _, tar := range tars {
		name := filepath.Base(tar)
		record := filepath.Join(c.disk(n.name), importedFolder, name)
		imported, err := importImage(ctx, filepath.Join(c.images(), name), record, func(context.Context, string) error {
			cmd, err := insideMachine(c.layout, n, "ctr", "--namespace=k8s.io", "images", "import", filepath.Join(machineImages, name))
			if err != nil {
				return err
			}
			if output, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("ctr images import: %w\n%s", err, output)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		if imported {
			fmt.Fprintf(c.out, "%s: imported %s\n", n.name, name)
		}
	}
	return nil
}
