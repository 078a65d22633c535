package result

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// chart is some metrics, a panel each, in one file.
type chart struct {
	file    string
	title   string
	metrics []Metric
}

// Measures of the drawing, in pixels.
const (
	chartWidth  = 760
	nameWidth   = 130
	valueWidth  = 70
	plotWidth   = chartWidth - nameWidth - valueWidth
	rowHeight   = 22
	barHeight   = 14
	titleHeight = 44
	panelHead   = 30
	panelFoot   = 30
)

// Colours: ours, the others', and the grid.
const (
	colourOurs   = "#d9601a"
	colourOthers = "#7a8ca3"
	colourInk    = "#1d2733"
	colourFaint  = "#d8dee6"
)

// writeCharts writes the charts that have anything to show, and returns their
// files' names.
func (s *Suite) writeCharts(r *Run, dir string) ([]string, error) {
	var names []string
	for _, c := range s.charts {
		var b bytes.Buffer
		drawn, err := s.draw(&b, r, c)
		if err != nil {
			return nil, fmt.Errorf("draw %s: %w", c.file, err)
		}
		if !drawn {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, c.file), b.Bytes(), 0o644); err != nil {
			return nil, err
		}
		names = append(names, c.file)
	}
	return names, nil
}

func (s *Suite) draw(w io.Writer, r *Run, c chart) (drawn bool, err error) {
	rows := map[Metric][]Summary{}
	height := titleHeight
	for _, x := range s.summaries(r) {
		rows[x.Metric] = append(rows[x.Metric], x)
	}
	for _, m := range c.metrics {
		if len(rows[m]) > 0 {
			height += panelHead + len(rows[m])*rowHeight + panelFoot
			drawn = true
		}
	}
	if !drawn {
		return false, nil
	}
	p := &printer{w: w}
	p.line(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="%s">`,
		chartWidth, height, chartWidth, height, colourInk)
	p.line(`<rect width="100%%" height="100%%" fill="white"/>`)
	p.line(`<text x="12" y="26" font-size="16" font-weight="bold">%s</text>`, html.EscapeString(c.title))
	y := titleHeight
	for _, m := range c.metrics {
		if len(rows[m]) > 0 {
			y = panel(p, y, m, rows[m])
		}
	}
	p.line(`</svg>`)
	return true, p.err
}

// panel draws one metric from y on and returns where the next one begins.
func panel(p *printer, y int, m Metric, rows []Summary) int {
	largest := 0.0
	for _, s := range rows {
		largest = max(largest, s.Max)
	}
	step := tick(largest)
	end := step * math.Ceil(largest/step)
	if end == 0 { // all values are zero
		step, end = 1, 1
	}
	at := func(v float64) float64 { return nameWidth + max(v, 0)/end*plotWidth }

	direction := "more is better"
	if m.LowerIsBetter() {
		direction = "less is better"
	}
	p.line(`<text x="12" y="%d"><tspan font-weight="bold">%s</tspan> · %s, %s</text>`, y+16,
		html.EscapeString(capital(m.Title())), html.EscapeString(m.Unit()), direction)
	top, bottom := y+panelHead, y+panelHead+len(rows)*rowHeight
	for v := 0.0; v <= end+step/2; v += step {
		p.line(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s"/>`, at(v), at(v), top-4, bottom, colourFaint)
		p.line(`<text x="%.1f" y="%d" text-anchor="middle" font-size="10">%.6g</text>`, at(v), bottom+13, v)
	}
	for i, s := range rows {
		middle := top + i*rowHeight + rowHeight/2
		colour := colourOthers
		if strings.HasPrefix(s.Variant, Ambit) {
			colour = colourOurs
		}
		p.line(`<text x="%d" y="%d" text-anchor="end">%s</text>`, nameWidth-8, middle+4, html.EscapeString(s.Variant))
		p.line(`<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, nameWidth, middle-barHeight/2, at(s.Median)-nameWidth, barHeight, colour)
		p.line(`<path d="M%.1f %dV%dM%.1f %dH%.1fM%.1f %dV%d" stroke="%s" fill="none"/>`,
			at(s.Min), middle-4, middle+4, at(s.Min), middle, at(s.Max), at(s.Max), middle-4, middle+4, colourInk)
		p.line(`<text x="%.1f" y="%d">%s</text>`, at(s.Max)+6, middle+4, figure(s.Median))
	}
	return bottom + panelFoot
}

// tick is a round number of which a handful reach the largest value.
func tick(largest float64) float64 {
	if largest <= 0 {
		return 1
	}
	const few = 5
	unit := math.Pow(10, math.Floor(math.Log10(largest/few)))
	for _, factor := range []float64{1, 2, 5} {
		if unit*factor*few >= largest {
			return unit * factor
		}
	}
	return unit * 10
}
