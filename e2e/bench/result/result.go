// Package result turns what was measured into what is said about it.
//
//	result.go   samples, percentiles, medians, ratios of neighbours in time
//	metric.go   metrics: units, and which way is better
//	target.go   what was promised, and whether it was kept
//	suite.go    what is said of one level, and its files
//	l4.go       of connections
//	l7.go       of requests
//	json.go     the files for programs
//	report.go   the page
//	chart.go    the charts
//
// Ratios are paired: that of two variants in each round, in which they ran one
// after the other, and the median of those. The machine's other work, which
// comes and goes, weighs on both alike then.
//
// All is pure but the writing of files. Measuring is not its job.
package result

import (
	"cmp"
	"math"
	"slices"
)

// Sample is one measured value.
type Sample struct {
	Variant string  `json:"variant"`
	Metric  Metric  `json:"metric"`
	Round   int     `json:"round"`
	Value   float64 `json:"value"`
}

// Samples are those of a run.
type Samples []Sample

// Summary is the samples of one variant and metric.
type Summary struct {
	Variant string  `json:"variant"`
	Metric  Metric  `json:"metric"`
	Unit    string  `json:"unit"`
	Median  float64 `json:"median"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Rounds  int     `json:"rounds"`
}

// Percentile is the smallest of the sorted values that a share of them does not
// exceed; zero of none.
func Percentile[T cmp.Ordered](sorted []T, share float64) T {
	if len(sorted) == 0 {
		var zero T
		return zero
	}
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median of values; of an even number, the mean of the two in the middle.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// of returns the values of a variant and metric, by round.
func (s Samples) of(variant string, metric Metric) map[int]float64 {
	values := map[int]float64{}
	for _, x := range s {
		if x.Variant == variant && x.Metric == metric {
			values[x.Round] = x.Value
		}
	}
	return values
}

// Summarize gives each variant and metric that has samples, in these orders.
func (s Samples) Summarize(variants []string, metrics []Metric) []Summary {
	var all []Summary
	for _, variant := range variants {
		for _, metric := range metrics {
			values := collect(s.of(variant, metric))
			if len(values) == 0 {
				continue
			}
			all = append(all, Summary{
				Variant: variant, Metric: metric, Unit: metric.Unit(),
				Median: Median(values), Min: slices.Min(values), Max: slices.Max(values), Rounds: len(values),
			})
		}
	}
	return all
}

// Side is one side of a ratio.
type Side struct {
	Variant string
	Metric  Metric
}

// Ratio is the quotient of two sides in the rounds that have both.
type Ratio struct {
	Median, Min, Max float64
	Rounds           int
}

// Ratio pairs two sides by round. It has no rounds if they never met.
func (s Samples) Ratio(over, under Side) Ratio {
	numerators, denominators := s.of(over.Variant, over.Metric), s.of(under.Variant, under.Metric)
	var ratios []float64
	for round, numerator := range numerators {
		if denominator, ok := denominators[round]; ok && denominator != 0 {
			ratios = append(ratios, numerator/denominator)
		}
	}
	if len(ratios) == 0 {
		return Ratio{}
	}
	return Ratio{Median: Median(ratios), Min: slices.Min(ratios), Max: slices.Max(ratios), Rounds: len(ratios)}
}

func collect(values map[int]float64) []float64 {
	all := make([]float64, 0, len(values))
	for _, v := range values {
		all = append(all, v)
	}
	return all
}
