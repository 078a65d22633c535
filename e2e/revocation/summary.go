package main

import (
	"fmt"
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
	// Load is the machine's load average of a minute, at the end.
	Load float64 `json:"load"`
	// Version of Ambit.
	Version string `json:"version"`
}

// target is what the 99th percentile is to stay under.
const target = 1000 // ms

const page = `# Revocation

How long a permission outlives its end. Written by ` + "`make revocation`" + `; the same in [revocation.json](revocation.json). Measured on
%d cores that Kubernetes' own control plane and three nodes share, Ambit %s, at a load average of %.0f: what is far above the
number of cores is other work, and every step waits for it.

A client on one node reads a connection to a server on another, on which a line comes every millisecond, and opens new ones as
fast as it can. Then ` + "`kubectl apply`" + ` of an AuthorizationPolicy that denies it is started. Measured from that start, the time that
kubectl and the API server take included:

| until | p50 | p99 | longest | trials |
|---|--:|--:|--:|--:|
| the last byte of the connection that stands | %.0f ms | %.0f ms | %.0f ms | %d |
| the first new connection that is refused | %.0f ms | %.0f ms | %.0f ms | %d |

The target is a p99 under %d ms for both.
`

func (r results) page() []byte {
	return fmt.Appendf(nil, page, r.CPUs, r.Version, r.Load, r.Live.P50, r.Live.P99, r.Live.Max, r.Live.Trials, r.New.P50, r.New.P99, r.New.Max, r.New.Trials, target)
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
