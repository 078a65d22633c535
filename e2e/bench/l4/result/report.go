package result

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// Report writes the report in Markdown; charts are the names of the charts' files.
func (r *Run) Report(w io.Writer, charts []string) error {
	p := &printer{w: w}
	p.line("# Layer 4, measured")
	p.line("")
	r.machine(p)
	p.line("")
	p.line("## Targets")
	p.line("")
	p.line("Ratios are medians of those of each round, in which the two variants ran one after the other.")
	p.line("")
	r.targets(p, Targets)
	p.line("")
	p.line("The same asked of the engine alone, on plain listeners:")
	p.line("")
	r.targets(p, EngineTargets())
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
	for _, metric := range Metrics {
		r.metric(p, metric)
	}
	p.line("")
	p.line("%s", method)
	return p.err
}

// method is how to read the figures.
const method = `## How it was measured

Client and server are pods, network namespaces on two nodes that a bridge connects. Proxy A is in the client's pod and proxy B
in the server's, as a mesh has them; "same-node" pairs are two pods of one node. All peers run TLS 1.3 with
TLS_AES_128_GCM_SHA256 and ECDSA P-256 certificates, demanded and verified on both sides; that B speaks just this, and
refuses whoever has none of these certificates, is tried before it is measured. Key exchange and resumption of sessions are
each peer's default: HAProxy, nginx and Envoy resume, which spares them most of a handshake, Ambit never does. Workers: two
threads or processes; for Go its default.

- none: the client connects to the server. splice: two plain TCP proxies in Go whose bytes stay in the kernel.
- ambit: the shipped ztunnel with its own redirection. ambit-bare: the same engine, on plain listeners, without policy, metrics, logs.
- haproxy: two in TCP mode, TLS between them; haproxy-tuned: with tune.bufsize 131072. nginx: the same with its stream
  module. envoy: HTTP/2 CONNECT over TLS, as HBONE is.

In each round and for each metric all variants run one after the other, in an order that rotates. CPU time is user and
system time of both proxies together. Bytes count when the server has read them. Memory is proportional set size: its
growth from a freshly started pair with ten connections, divided by the connections that were opened, after some seconds
of rest; the worse of the two sides. Where a process may not open files enough (splice takes six for a connection), there
are fewer. With one CPU, client, proxies and server all share it.`

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
	p.line("Rounds: %d, of %s for each figure, begun %s; %d idle connections.", r.Rounds, r.Window, r.Begun.UTC().Format("2006-01-02 15:04 MST"), r.Idle)
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
func (r *Run) metric(p *printer, metric Metric) {
	var rows []Summary
	for _, s := range r.Samples.Summarize(r.Variants) {
		if s.Metric == metric {
			rows = append(rows, s)
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
	p.line("| variant | %s | of splice | of haproxy-tuned |", metric.Unit())
	p.line("|---|---|---|---|")
	for _, s := range rows {
		p.line("| %s | %s (%s-%s) | %s | %s |", s.Variant, figure(s.Median), figure(s.Min), figure(s.Max),
			r.over(s, Splice), r.over(s, HAProxyTuned))
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
