package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// result is one metric of one variant, over all rounds.
type result struct {
	Variant string  `json:"variant"`
	Metric  string  `json:"metric"`
	Unit    string  `json:"unit"`
	Median  float64 `json:"median"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Rounds  int     `json:"rounds"`
}

var units = map[string]string{
	"rss_mib": "MiB", "pss_mib": "MiB", "peak_rss_mib": "MiB", "heap_mib": "MiB", "synced_s": "s", "known": "addresses",
}

func summaries(variant string, values map[string][]float64) (all []result) {
	for _, metric := range slices.Sorted(maps.Keys(values)) {
		rounds := slices.Sorted(slices.Values(values[metric]))
		median := (rounds[(len(rounds)-1)/2] + rounds[len(rounds)/2]) / 2
		all = append(all, result{
			Variant: variant, Metric: metric, Unit: units[metric], Rounds: len(rounds),
			Median: round(median), Min: round(rounds[0]), Max: round(rounds[len(rounds)-1]),
		})
	}
	return all
}

// round to hundredths: more is noise.
func round(v float64) float64 { return float64(int64(v*100+0.5)) / 100 }

// targets are what a ztunnel may occupy, in MiB.
var targets = map[string]float64{"full-1000": 40, "full-100000": 250, "on-demand-100000": 40}

func write(dir string, results []result, settle time.Duration) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var lines []string
	for _, r := range results {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		lines = append(lines, "  "+string(line))
	}
	list := "[\n" + strings.Join(lines, ",\n") + "\n]\n"
	if err := os.WriteFile(filepath.Join(dir, "memory.json"), []byte(list), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "memory.md"), []byte(page(results, settle)), 0o644)
}

func page(results []result, settle time.Duration) string {
	var out strings.Builder
	fmt.Fprintf(&out, `# Memory of ztunnel

What the shipped ztunnel occupies when it knows a mesh and carries nothing, %s after it knew everything. Made by
`+"`make bench-memory`"+`, which writes this page; all figures are in memory.json.

On %s. Medians of %d rounds, least and most in parentheses.

| variant | known | resident (MiB) | target | peak (MiB) | Go heap (MiB) | ready after (s) |
|---|---|---|---|---|---|---|
`, settle, machine(), results[0].Rounds)
	find := func(variant, metric string) result {
		i := slices.IndexFunc(results, func(r result) bool { return r.Variant == variant && r.Metric == metric })
		return results[i]
	}
	for _, v := range variants {
		cell := func(metric string) string {
			r := find(v.name, metric)
			return fmt.Sprintf("%.4g (%.4g to %.4g)", r.Median, r.Min, r.Max)
		}
		fmt.Fprintf(&out, "| %s | %.0f | %s | %.0f | %s | %s | %s |\n",
			v.name, find(v.name, "known").Median, cell("rss_mib"), targets[v.name], cell("peak_rss_mib"), cell("heap_mib"), cell("synced_s"))
	}
	out.WriteString(`
- *known*: workloads, and one service for 50 of them. The workloads are pods of Deployments, with a service account for
  each Deployment, one IPv4 address each, on nodes of 100 pods; none of them is in the mesh but one of the node itself.
- *resident*: what the kernel says is in memory, the program's own pages included; nothing of it is shared with others.
- *peak*: the most that was ever resident: at the start, when the whole mesh comes in one message.
- *ready*: from the start of the process until its readiness probe succeeds, its pod captured. The controller is ready
  before that. On the machine, controller and API server have to do their part at the same time.
- *on-demand*: the mesh has 100,000 workloads; a pod of the node has connected to 20 services.
`)
	return out.String()
}

// machine names what the figures were made on.
func machine() string {
	var name unix.Utsname
	kernel := "an unknown kernel"
	if unix.Uname(&name) == nil {
		kernel = "Linux " + unix.ByteSliceToString(name.Release[:])
	}
	memory := valueOf("/proc/meminfo", "MemTotal")
	var kib int
	fmt.Sscanf(memory, "%d kB", &kib)
	return fmt.Sprintf("%d processors (%s), %d GiB, %s, %s", runtime.NumCPU(), valueOf("/proc/cpuinfo", "model name"), (kib+1<<19)>>20, kernel, runtime.Version())
}

// valueOf returns the first value of a key in a file of "key: value" lines.
func valueOf(path, key string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
