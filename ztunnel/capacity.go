package main

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/quota"
)

const (
	// fewFiles are for what any node has to be able to carry.
	fewFiles = 16 << 10
	// maxFiles is more than the addresses and ports of a node's pods allow.
	maxFiles = 16 << 20
	// sparePart of the files are not for connections: tunnels, listeners, the rest.
	sparePart = 8
)

// shares divides what the process can carry among the node's pods: none can open
// so much that the others' connections find no file descriptor.
func (z *ztunnel) shares() *quota.Shares {
	capacity := fewFiles
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		z.logger.Warn("limit of open files not read", "error", fmt.Errorf("getrlimit: %w", err))
	} else {
		capacity = int(min(files.Cur-files.Cur/sparePart, maxFiles))
	}
	if capacity < fewFiles {
		z.logger.Warn("the limit of open files is low: many connections at once will be refused", "files", files.Cur)
	}
	shares := quota.NewShares(capacity)
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	z.metrics.Registry.MustRegister(
		gauge("ambit_carried_files", "File descriptors that the connections of all pods may need.", shares.Held),
		gauge("ambit_carried_files_capacity", "What there is for connections; from three quarters on, each pod gets its share.", shares.Capacity),
	)
	return shares
}
