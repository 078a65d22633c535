package result

import "maps"

// Metric names what is measured.
type Metric string

// about is a metric's unit and, in a few words, what it is.
type about struct {
	unit string
	// lower: less is better.
	lower bool
	title string
}

var metrics = merged(l4Metrics, l7Metrics)

func merged(levels ...map[Metric]about) map[Metric]about {
	all := map[Metric]about{}
	for _, l := range levels {
		maps.Copy(all, l)
	}
	return all
}

// Unit of the metric's values.
func (m Metric) Unit() string { return metrics[m].unit }

// Title says in a few words what is measured.
func (m Metric) Title() string { return metrics[m].title }

// LowerIsBetter tells which way is better.
func (m Metric) LowerIsBetter() bool { return metrics[m].lower }
