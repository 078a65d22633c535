package main

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/quota"
)

const (
	// filesPerConnection are the descriptors of a connection: two sockets, and a
	// pipe while the kernel moves its bytes.
	filesPerConnection = 4
	// fewConnections is what any node has to be able to carry.
	fewConnections = 4096
	// maxConnections is more than the addresses and ports of a node's pods allow.
	maxConnections = 4 << 20
)

// shares divides what the process can carry among the node's pods: none can open
// so much that the others' connections find no file descriptor.
func (z *ztunnel) shares() *quota.Shares {
	capacity := fewConnections
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		z.logger.Warn("limit of open files not read", "error", fmt.Errorf("getrlimit: %w", err))
	} else {
		capacity = int(min(files.Cur/filesPerConnection, maxConnections))
	}
	if capacity < fewConnections {
		z.logger.Warn("the limit of open files is low: many connections at once will be refused", "files", files.Cur, "connections", capacity)
	}
	shares := quota.NewShares(capacity)
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	z.metrics.Registry.MustRegister(
		gauge("ambit_carried_connections", "Connections of all pods that count towards the capacity.", shares.Held),
		gauge("ambit_carried_connections_capacity", "What can be carried; from three quarters on, each pod gets its share.", shares.Capacity),
	)
	return shares
}
