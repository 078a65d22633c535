package result

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Machine is what a run was made on.
type Machine struct {
	CPU        string `json:"cpu"`
	CPUs       int    `json:"cpus"`
	Kernel     string `json:"kernel"`
	Go         string `json:"go"`
	Congestion string `json:"congestion_control"`
	Files      uint64 `json:"open_files"`
}

// Version is what a variant was run with.
type Version struct {
	Variant string `json:"variant"`
	Version string `json:"version"`
}

// Lack is a variant that was absent, or a measurement that failed, and why.
type Lack struct {
	Variant string `json:"variant"`
	// Metric is the group of metrics that is missing, or FailedStart; empty for
	// what was absent.
	Metric string `json:"metric,omitempty"`
	Round  int    `json:"round"`
	Why    string `json:"why"`
}

// FailedStart is the Lack.Metric of a variant that did not start.
const FailedStart = "start"

// Run is all there is to say about one.
type Run struct {
	Machine  Machine       `json:"machine"`
	Begun    time.Time     `json:"begun"`
	Rounds   int           `json:"rounds"`
	Window   time.Duration `json:"window_ns"`
	Idle     int           `json:"idle_connections"`
	Variants []string      `json:"variants"`
	Versions []Version     `json:"versions"`
	Absent   []Lack        `json:"absent"`
	Failed   []Lack        `json:"failed"`
	Samples  Samples       `json:"samples"`
}

// Write writes the two JSON files.
func (r *Run) Write(summary, samples string) error {
	summaries := r.Samples.Summarize(r.Variants)
	if summaries == nil {
		summaries = []Summary{} // an array also if there is nothing in it
	}
	for path, content := range map[string]any{summary: summaries, samples: r} {
		b, err := json.MarshalIndent(content, "", " ")
		if err != nil {
			return fmt.Errorf("encode %s: %w", path, err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}
