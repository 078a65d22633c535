package main

import (
	"fmt"
	"os"
	"syscall"

	"github.com/ambit-mesh/ambit/ztunnel/podns"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
)

// podNamespaces are the network namespaces in the container runtime's folder.
type podNamespaces struct{ dir string }

func (n podNamespaces) Scan() ([]pods.Namespace, error) {
	candidates, err := podns.Scan(n.dir)
	if err != nil {
		return nil, err
	}
	all := make([]pods.Namespace, 0, len(candidates))
	for _, c := range candidates {
		stat, err := os.Stat(c.Path)
		if err != nil {
			continue // gone since
		}
		// A namespace's file appears with it, and nobody writes it.
		all = append(all, pods.Namespace{Path: c.Path, Inode: c.Inode, Created: stat.ModTime(), Addrs: c.Addrs})
	}
	return all, nil
}

func (n podNamespaces) Inode(path string) (uint64, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	system, ok := stat.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("stat %s: no inode", path)
	}
	return system.Ino, nil
}
