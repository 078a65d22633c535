package result

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// report writes the report in Markdown; charts are the names of the charts' files.
func (s *Suite) report(w io.Writer, r *Run, charts []string) error {
	p := &printer{w: w}
	p.line("# %s", s.Title)
	p.line("")
	r.machine(p)
	p.line("")
	p.line("## Targets")
	p.line("")
	p.line("Ratios are medians of those of each round, in which the two variants ran one after the other.")
	p.line("")
	r.targets(p, s.Targets)
	p.line("")
	p.line("%s", s.engine)
	p.line("")
	r.targets(p, s.EngineTargets)
	if len(r.Absent)+len(r.Failed) > 0 {
		p.line("")
		p.line("## Not measured")
		p.line("")
		r.lacks(p)
	}
	if len(charts) > 0 {
		p.line("")
		for _, name := range charts {
			p.line("![%s](%s)", strings.TrimSuffix(name, ".svg"), name)
		}
	}
	p.line("")
	p.line("## All figures")
	p.line("")
	p.line("Median, and in brackets the smallest and the largest, of the rounds.")
	for _, metric := range s.Metrics {
		s.metric(p, r, metric)
	}
	p.line("")
	p.line("%s", s.method)
	return p.err
}

func (r *Run) machine(p *printer) {
	m := r.Machine
	p.line("%s, %d CPUs, Linux %s, %s, congestion control %s, %d open files for a process.", m.CPU, m.CPUs, m.Kernel, m.Go, m.Congestion, m.Files)
	var versions []string
	for _, v := range r.Versions {
		if v.Version != "" {
			versions = append(versions, v.Variant+": "+v.Version)
		}
	}
	if len(versions) > 0 {
		p.line("%s.", strings.Join(versions, "; "))
	}
	conditions := ""
	if r.Idle > 0 {
		conditions += fmt.Sprintf("; %d idle connections", r.Idle)
	}
	if r.Rate > 0 {
		conditions += fmt.Sprintf("; latencies at %d requests a second", r.Rate)
	}
	p.line("Rounds: %d, of %s for each figure, begun %s%s.", r.Rounds, r.Window, r.Begun.UTC().Format("2006-01-02 15:04 MST"), conditions)
}

func (r *Run) targets(p *printer, targets []Target) {
	p.line("| what | of | against | wanted | measured | range | |")
	p.line("|---|---|---|---|---|---|---|")
	for _, t := range targets {
		v := r.Samples.Judge(t)
		if v.Measured.Rounds == 0 {
			p.line("| %s | %s | %s | %s | | | not measured: %s |", t.Says, t.Subject.Variant, t.Against(), t.Wanted(), r.why(t))
			continue
		}
		verdict := "**missed**"
		if v.Met {
			verdict = "met"
		}
		p.line("| %s | %s | %s | %s | %s | %s-%s | %s by %.0f%% |", t.Says, t.Subject.Variant, t.Against(), t.Wanted(),
			figure(v.Measured.Median), figure(v.Measured.Min), figure(v.Measured.Max), verdict, math.Abs(v.Margin()))
	}
}

// why tells what a target lacks.
func (r *Run) why(t Target) string {
	for _, side := range []Side{t.Subject, t.Reference} {
		for _, l := range r.Absent {
			if l.Variant == side.Variant {
				return side.Variant + " absent"
			}
		}
	}
	for _, side := range []Side{t.Subject, t.Reference} {
		if side.Variant != "" && len(r.Samples.of(side.Variant, side.Metric)) == 0 {
			return "no " + string(side.Metric) + " of " + side.Variant
		}
	}
	return "never in one round"
}

func (r *Run) lacks(p *printer) {
	for _, l := range r.Absent {
		p.line("- %s absent: %s", l.Variant, l.Why)
	}
	for _, l := range r.Failed {
		if l.Metric == FailedStart {
			p.line("- %s did not start: %s", l.Variant, l.Why)
			continue
		}
		p.line("- %s, %s in round %d failed: %s", l.Variant, l.Metric, l.Round+1, l.Why)
	}
}

// metric writes one metric's table, best first in the order of variants.
func (s *Suite) metric(p *printer, r *Run, metric Metric) {
	var rows []Summary
	for _, x := range s.summaries(r) {
		if x.Metric == metric {
			rows = append(rows, x)
		}
	}
	if len(rows) == 0 {
		return
	}
	better := "more is better"
	if metric.LowerIsBetter() {
		better = "less is better"
	}
	p.line("")
	p.line("### %s", metric)
	p.line("")
	p.line("%s; %s, %s.", capital(metric.Title()), metric.Unit(), better)
	p.line("")
	head, rule := "| variant | "+metric.Unit()+" |", "|---|---|"
	for _, reference := range s.references {
		head, rule = head+" of "+reference+" |", rule+"---|"
	}
	p.line("%s", head)
	p.line("%s", rule)
	for _, x := range rows {
		line := fmt.Sprintf("| %s | %s (%s-%s) |", x.Variant, figure(x.Median), figure(x.Min), figure(x.Max))
		for _, reference := range s.references {
			line += " " + r.over(x, reference) + " |"
		}
		p.line("%s", line)
	}
}

func (r *Run) over(s Summary, reference string) string {
	ratio := r.Samples.Ratio(Side{s.Variant, s.Metric}, Side{reference, s.Metric})
	if ratio.Rounds == 0 || s.Variant == reference {
		return ""
	}
	return figure(ratio.Median) + "x"
}

// figure writes a value with three digits that count.
func figure(v float64) string {
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	if v == 0 {
		digits = 0
	}
	return strconv.FormatFloat(v, 'f', min(max(digits, 0), 4), 64)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
