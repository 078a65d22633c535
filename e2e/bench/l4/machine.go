package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/result"
	"github.com/ambit-mesh/ambit/internal/netns"
)

// sysctls of each namespace, below /proc/sys/net.
var sysctls = []struct{ name, value string }{
	{"ipv4/tcp_congestion_control", congestion},
	{"ipv4/ip_local_port_range", "1024 65535"},
	// New connections at a rate of thousands a second would run out of ports
	// that wait for stray packets.
	{"ipv4/tcp_tw_reuse", "1"},
	{"core/somaxconn", "4096"},
}

func setSysctls(ns *netns.NetNS) error {
	return ns.Do(func() error {
		for _, s := range sysctls {
			if err := os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0); err != nil {
				return fmt.Errorf("set %s: %w", s.name, err)
			}
		}
		return nil
	})
}

func describeMachine(files uint64) (result.Machine, error) {
	m := result.Machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Congestion: congestion, Files: files}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return m, fmt.Errorf("read the kernel's version: %w", err)
	}
	m.Kernel = string(bytes.TrimSpace(kernel))
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, fmt.Errorf("read the CPU's name: %w", err)
	}
	m.CPU = cpuName(string(cpus))
	return m, nil
}

// cpuName reads /proc/cpuinfo.
func cpuName(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "CPU of unknown name"
}
