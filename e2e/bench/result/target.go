package result

import "fmt"

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
	for _, x := range s.Summarize([]string{side.Variant}, []Metric{side.Metric}) {
		return Ratio{Median: x.Median, Min: x.Min, Max: x.Max, Rounds: x.Rounds}
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
