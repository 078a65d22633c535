package result

import "fmt"

// Names of the variants that targets are about.
const (
	None          = "none"
	Splice        = "splice"
	Ambit         = "ambit"
	AmbitBare     = "ambit-bare"
	HAProxy       = "haproxy"
	HAProxyTuned  = "haproxy-tuned"
	NoneSameNode  = "none-same-node"
	AmbitSameNode = "ambit-same-node"
)

// Target is what the mesh is held to: a paired ratio, or, without a reference, a
// value, that is to be at least or at most a bound.
type Target struct {
	Subject, Reference Side
	// Inverse takes the ratio the other way round: for what is said of a rate
	// and measured as a cost.
	Inverse bool
	AtLeast bool
	Bound   float64
	Says    string
}

// ratio of a subject's metric to another variant's.
func ratio(subject, reference string, metric Metric) Target {
	return Target{Subject: Side{subject, metric}, Reference: Side{reference, metric}}
}

func (t Target) says(words string) Target      { t.Says = words; return t }
func (t Target) atLeast(bound float64) Target  { t.AtLeast, t.Bound = true, bound; return t }
func (t Target) atMost(bound float64) Target   { t.Bound = bound; return t }
func (t Target) inverse() Target               { t.Inverse = true; return t }
func (t Target) over(m Metric) Target          { t.Reference.Metric = m; return t }
func absolute(subject string, m Metric) Target { return Target{Subject: Side{subject, m}} }
func (t Target) isRatio() bool                 { return t.Reference.Variant != "" }

// Targets are those of the data path of layer 4.
//
// Against splice it is the engine alone that counts, as splice is alone: both
// are plain listeners. Against proxies and no mesh at all it is what is shipped.
var Targets = []Target{
	ratio(Ambit, HAProxyTuned, Throughput1).atLeast(1.0).says("throughput, one stream"),
	ratio(Ambit, HAProxyTuned, Throughput32).atLeast(1.0).says("throughput, 32 streams"),
	ratio(AmbitBare, Splice, Throughput1).atLeast(0.38).says("throughput, one stream"),
	ratio(AmbitBare, Splice, Throughput32).atLeast(0.38).says("throughput, 32 streams"),
	ratio(Ambit, HAProxyTuned, CPUPerGB1).atMost(0.9).says("CPU for a GB, one stream"),
	ratio(Ambit, HAProxyTuned, CPUPerGB32).atMost(0.9).says("CPU for a GB, 32 streams"),
	ratio(AmbitBare, Splice, PingP50).atMost(1.1).says("round trip, median"),
	ratio(Ambit, HAProxyTuned, PingP99).atMost(1.0).says("round trip, 99th percentile"),
	ratio(Ambit, Ambit, SmallP99BesideBulk).over(SmallP99Alone).atMost(2.0).says("small round trips, 99th percentile, beside bulk over alone"),
	ratio(Ambit, HAProxy, CPUPer10kConns).inverse().atLeast(4.0).says("connections for a CPU second"),
	absolute(Ambit, IdlePerTunnel).atMost(8.0).says("memory of an idle connection, worse side"),
	ratio(AmbitSameNode, NoneSameNode, Throughput1).atLeast(0.8).says("throughput on one node, one stream"),
	ratio(AmbitSameNode, NoneSameNode, Throughput32).atLeast(0.8).says("throughput on one node, 32 streams"),
}

// EngineTargets are the targets for what is shipped, asked of the engine alone:
// the difference is what capture, policy, metrics and logs cost.
func EngineTargets() []Target {
	var all []Target
	for _, t := range Targets {
		if t.Subject.Variant != Ambit {
			continue
		}
		t.Subject.Variant = AmbitBare
		if t.Reference.Variant == Ambit {
			t.Reference.Variant = AmbitBare
		}
		all = append(all, t)
	}
	return all
}

// Verdict is what became of a target.
type Verdict struct {
	Target
	// Measured is the median of the ratios, or of the values.
	Measured Ratio
	Met      bool
}

// Judge measures a target. Without samples of both sides, Measured.Rounds is
// zero, and nothing is met.
func (s Samples) Judge(t Target) Verdict {
	v := Verdict{Target: t}
	over, under := t.Subject, t.Reference
	if t.Inverse {
		over, under = under, over
	}
	if t.isRatio() {
		v.Measured = s.Ratio(over, under)
	} else {
		v.Measured = s.value(t.Subject)
	}
	if v.Measured.Rounds == 0 {
		return v
	}
	if t.AtLeast {
		v.Met = v.Measured.Median >= t.Bound
	} else {
		v.Met = v.Measured.Median <= t.Bound
	}
	return v
}

// value is a side's own samples in the form of a ratio to one.
func (s Samples) value(side Side) Ratio {
	for _, x := range s.Summarize([]string{side.Variant}) {
		if x.Metric == side.Metric {
			return Ratio{Median: x.Median, Min: x.Min, Max: x.Max, Rounds: x.Rounds}
		}
	}
	return Ratio{}
}

// Margin tells by how much a target is met or missed, in percent of its bound:
// above zero if it is met.
func (v Verdict) Margin() float64 {
	margin := (v.Measured.Median/v.Bound - 1) * 100
	if !v.AtLeast {
		margin = -margin
	}
	return margin
}

// Against names the reference.
func (t Target) Against() string {
	switch {
	case !t.isRatio():
		return "itself"
	case t.Reference.Variant == t.Subject.Variant:
		return "alone"
	}
	return t.Reference.Variant
}

// Wanted is the bound in words.
func (t Target) Wanted() string {
	sign, unit := "at most", "x"
	if t.AtLeast {
		sign = "at least"
	}
	if !t.isRatio() {
		unit = " " + t.Subject.Metric.Unit()
	}
	return fmt.Sprintf("%s %g%s", sign, t.Bound, unit)
}
