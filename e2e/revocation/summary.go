package main

import (
	"math"
	"slices"
	"time"
)

// results are the file revocation.json.
type results struct {
	// Live is of connections that stood, New of those opened afterwards.
	Live summary `json:"live"`
	New  summary `json:"new"`
	CPUs int     `json:"cpus"`
}

type summary struct {
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
	Max    float64 `json:"max_ms"`
	Trials int     `json:"trials"`
}

func summarize(all []time.Duration) summary {
	sorted := slices.Sorted(slices.Values(all))
	return summary{P50: percentile(sorted, 0.50), P99: percentile(sorted, 0.99), Max: percentile(sorted, 1), Trials: len(sorted)}
}

// percentile is the smallest value that at least that share of all are not
// above, in milliseconds.
func percentile(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(share * float64(len(sorted))))
	return math.Round(sorted[max(rank, 1)-1].Seconds()*10000) / 10
}
