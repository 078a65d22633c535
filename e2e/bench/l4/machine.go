package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/result"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/variant"
)

func describeMachine(files uint64) (result.Machine, error) {
	m := result.Machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Congestion: variant.Congestion, Files: files}
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
