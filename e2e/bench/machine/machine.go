// Package machine is what benchmarks run on: what it is called in their reports, and
// what of its network they set.
//
//	machine.go     its CPUs, kernel and limits
//	tune.go        the network of every pod
//	congestion.go  what the machine must allow for that
package machine

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/ambit-mesh/ambit/e2e/bench/result"
)

// Describe says what this machine is; files is how many files a process may open.
func Describe(files uint64) (result.Machine, error) {
	m := result.Machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Congestion: Congestion, Files: files}
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
