package result

import (
	"os"
	"path/filepath"
)

// Names of the variants that both levels have.
const (
	None      = "none"
	Ambit     = "ambit"
	AmbitBare = "ambit-bare"
	HAProxy   = "haproxy"
	Nginx     = "nginx"
	Envoy     = "envoy"
)

// Suite is what the figures of one level are called, and what is said of them.
type Suite struct {
	// Name is what its files begin with, Title that of its page.
	Name, Title string
	// Metrics in the order of the page.
	Metrics []Metric
	// Targets of what is shipped, and the same asked of the engine alone: the
	// difference is what it costs to be part of a mesh.
	Targets, EngineTargets []Target

	// engine introduces the latter.
	engine string
	// references are the variants that all others are set against.
	references []string
	charts     []chart
	// method is how to read the figures.
	method string
}

func (s *Suite) summaries(r *Run) []Summary { return r.Samples.Summarize(r.Variants, s.Metrics) }

// ofEngine are the targets of what is shipped, asked of the engine alone; where it has
// counterparts of its own, these are what it is set against.
func ofEngine(targets []Target, counterparts ...string) []Target {
	var all []Target
	for _, t := range targets {
		if t.Subject.Variant != Ambit {
			continue
		}
		t.Subject.Variant = AmbitBare
		if t.Reference.Variant == Ambit {
			t.Reference.Variant = AmbitBare
		}
		for i := 0; i+1 < len(counterparts); i += 2 {
			if t.Reference.Variant == counterparts[i] {
				t.Reference.Variant = counterparts[i+1]
				break
			}
		}
		all = append(all, t)
	}
	return all
}

// Write writes the files of a run: NAME.json, an array of one object for each variant
// and metric; NAME-samples.json, all there is; the charts; and NAME.md.
func (s *Suite) Write(r *Run, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	summaries := s.summaries(r)
	if summaries == nil {
		summaries = []Summary{} // an array also if there is nothing in it
	}
	if err := writeJSON(filepath.Join(dir, s.Name+".json"), summaries); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, s.Name+"-samples.json"), r); err != nil {
		return err
	}
	drawn, err := s.writeCharts(r, dir)
	if err != nil {
		return err
	}
	page, err := os.Create(filepath.Join(dir, s.Name+".md"))
	if err != nil {
		return err
	}
	defer page.Close()
	if err := s.report(page, r, drawn); err != nil {
		return err
	}
	return page.Close()
}
