package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// results are the file rotation.json.
type results struct {
	Rotations []rotation `json:"rotations"`
	CPUs      int        `json:"cpus"`
	// Load is the machine's load average of a minute, at the end.
	Load float64 `json:"load"`
	// Version of Ambit.
	Version string `json:"version"`
}

// rotation is one of them.
type rotation struct {
	What string `json:"what"`
	// Seconds until it was complete.
	Seconds float64 `json:"seconds"`
	// Rate is how many connections were to be opened a second.
	Rate   int `json:"rate"`
	Opened int `json:"opened"`
	Failed int `json:"failed"`
	// SlowestMS took so long until its answer.
	SlowestMS int64 `json:"slowest_ms"`
	// Standing are connections that stood before, StandingLost those that ended.
	Standing     int      `json:"standing"`
	StandingLost int      `json:"standing_lost"`
	Examples     []string `json:"examples,omitempty"`
}

// status is what `ambit ca status -o json` tells.
type status struct {
	Roots  []struct{ Fingerprint, Phase string }
	Issuer struct{ Serial, Root string }
}

func readStatus(ctx context.Context, bed *testbed.Bed) (status, error) {
	text, err := bed.Run(ctx, "ambit", "ca", "status", "-o", "json")
	if err != nil {
		return status{}, err
	}
	var s status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return status{}, fmt.Errorf("read what ambit ca status says: %w", err)
	}
	return s, nil
}

// follows says what a rotation is still waiting for.
func (s status) follows(was status, what string) error {
	switch {
	case s.Issuer.Serial == was.Issuer.Serial:
		return fmt.Errorf("%s still signs", was.Issuer.Serial)
	case what == "intermediate":
		return nil
	case s.Issuer.Root == was.Issuer.Root:
		return fmt.Errorf("the root %s is still in use", was.Issuer.Root)
	case len(s.Roots) != 1:
		return fmt.Errorf("%d roots are trusted: %+v", len(s.Roots), s.Roots)
	}
	return nil
}

const page = `# Rotation

What fails while the mesh changes what signs its certificates. Written by ` + "`make rotation`" + `; the same in [rotation.json](rotation.json).
Measured on %d cores that Kubernetes' own control plane and three nodes share, Ambit %s, at a load average of %.0f.

A pod on each of two nodes opens connections to the other, %d a second together, and waits for an answer in each; each also uses one
connection that stands from before the rotation. ` + "`ambit ca rotate --intermediate`" + ` has another key sign. ` + "`ambit ca rotate --root`" + ` is
complete when the former root is trusted by nobody any more: until then every node has acknowledged the new one, and every
certificate, and every tunnel in use, has been replaced by one below it.

| rotation | complete after | new connections | failed | slowest | standing | lost |
|---|--:|--:|--:|--:|--:|--:|
%s`

func (r results) page() []byte {
	var rows strings.Builder
	rate := 0
	for _, row := range r.Rotations {
		rate = row.Rate
		fmt.Fprintf(&rows, "| %s | %.1f s | %d | %d | %d ms | %d | %d |\n", row.What, row.Seconds, row.Opened, row.Failed, row.SlowestMS, row.Standing, row.StandingLost)
	}
	return fmt.Appendf(nil, page, r.CPUs, r.Version, r.Load, rate, rows.String())
}

func (r results) write(folder string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make folder of results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "rotation.json"), append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "rotation.md"), r.page(), 0o644); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	fmt.Printf("%s\n", content)
	for _, row := range r.Rotations {
		if row.Failed > 0 || row.StandingLost > 0 || row.Opened == 0 {
			return fmt.Errorf("rotation of the %s: %d of %d new connections failed, %d of %d that stood were lost", row.What, row.Failed, row.Opened, row.StandingLost, row.Standing)
		}
	}
	return nil
}
