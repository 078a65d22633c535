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

// Run is all there is to say about one. Idle is how many idle connections there were,
// Rate how many requests a second where latencies were measured; 0 where there was no
// such thing.
type Run struct {
	Machine  Machine       `json:"machine"`
	Begun    time.Time     `json:"begun"`
	Rounds   int           `json:"rounds"`
	Window   time.Duration `json:"window_ns"`
	Idle     int           `json:"idle_connections,omitempty"`
	Rate     int           `json:"open_loop_rate,omitempty"`
	Variants []string      `json:"variants"`
	Versions []Version     `json:"versions"`
	Absent   []Lack        `json:"absent"`
	Failed   []Lack        `json:"failed"`
	Samples  Samples       `json:"samples"`
}

// Failure is an error if anything failed.
func (r *Run) Failure() error {
	if len(r.Failed) == 0 {
		return nil
	}
	last := r.Failed[len(r.Failed)-1]
	return fmt.Errorf("%d failures, the last of them %s, %s: %s", len(r.Failed), last.Variant, last.Metric, last.Why)
}

func writeJSON(path string, content any) error {
	b, err := json.MarshalIndent(content, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
