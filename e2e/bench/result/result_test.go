package result_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/e2e/bench/result"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestPercentileIsTheSmallestThatCoversTheShare(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, c := range []struct {
		sorted []int
		share  float64
		want   int
	}{
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0.999, 100},
		{hundred, 1, 100},
		{hundred, 0, 1},
		{[]int{7}, 0.5, 7},
		{[]int{1, 2}, 0.5, 1},
		{[]int{1, 2}, 0.51, 2},
		{nil, 0.5, 0},
	} {
		if got := result.Percentile(c.sorted, c.share); got != c.want {
			t.Errorf("percentile %g of %d values: %d, want %d", c.share, len(c.sorted), got, c.want)
		}
	}
}

func TestMedian(t *testing.T) {
	unsorted := []float64{9, 1, 5}
	if got := result.Median(unsorted); got != 5 || unsorted[0] != 9 {
		t.Errorf("median of three: %g; the values are now %v", got, unsorted)
	}
	if got := result.Median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median of four: %g, want 2.5", got)
	}
	if got := result.Median(nil); !math.IsNaN(got) {
		t.Errorf("median of none: %g", got)
	}
}

// rounds are the samples of one variant and metric, one a round.
func rounds(variant string, metric result.Metric, values ...float64) result.Samples {
	var s result.Samples
	for i, v := range values {
		s = append(s, result.Sample{Variant: variant, Metric: metric, Round: i, Value: v})
	}
	return s
}

func join(all ...result.Samples) (joined result.Samples) {
	for _, s := range all {
		joined = append(joined, s...)
	}
	return joined
}

func TestRatiosPairNeighboursInTime(t *testing.T) {
	// In the second round the machine was busy with something else: both suffer,
	// and their ratio does not. The medians' ratio would be 1.
	s := join(
		rounds("ours", result.Throughput1, 2, 0.2, 3),
		rounds("theirs", result.Throughput1, 1, 0.1, 2),
	)
	got := s.Ratio(result.Side{Variant: "ours", Metric: result.Throughput1}, result.Side{Variant: "theirs", Metric: result.Throughput1})
	if want := (result.Ratio{Median: 2, Min: 1.5, Max: 2, Rounds: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRatiosNeedBothSidesInARound(t *testing.T) {
	s := join(
		rounds("ours", result.Throughput1, 2, 4),
		result.Samples{{Variant: "theirs", Metric: result.Throughput1, Round: 1, Value: 1}, {Variant: "theirs", Metric: result.Throughput1, Round: 2, Value: 9}},
	)
	side := func(variant string) result.Side { return result.Side{Variant: variant, Metric: result.Throughput1} }
	if got := s.Ratio(side("ours"), side("theirs")); got.Rounds != 1 || got.Median != 4 {
		t.Errorf("got %+v, want that of round 1 alone", got)
	}
	if got := s.Ratio(side("ours"), side("nobody")); got.Rounds != 0 {
		t.Errorf("against nobody: %+v", got)
	}
}

func TestScalingPairsAllCPUsWithOne(t *testing.T) {
	s := join(
		rounds("ours", result.Throughput32, 3, 2, 9),
		rounds("ours", result.Throughput32OneCPU, 2, 1),
		rounds("theirs", result.Throughput32OneCPU, 5),
	)
	want := rounds("ours", result.Scaling, 1.5, 2)
	if diff := cmp.Diff(want, s.Scaling()); diff != "" {
		t.Error(diff)
	}
}

func TestTargetsAreMetOrMissedByTheRightSide(t *testing.T) {
	s := join(
		rounds(result.Ambit, result.Throughput1, 1.1),
		rounds(result.HAProxyTuned, result.Throughput1, 1.0),
		rounds(result.Ambit, result.CPUPerGB1, 1.1),
		rounds(result.HAProxyTuned, result.CPUPerGB1, 1.0),
		rounds(result.Ambit, result.CPUPer10kConns, 2),
		rounds(result.HAProxy, result.CPUPer10kConns, 10),
		rounds(result.Ambit, result.SmallP99Alone, 100),
		rounds(result.Ambit, result.SmallP99BesideBulk, 300),
		rounds(result.Ambit, result.IdlePerTunnel, 6),
	)
	got := map[result.Metric]string{}
	for _, target := range result.L4.Targets {
		v := s.Judge(target)
		if v.Measured.Rounds == 0 {
			continue
		}
		word := "missed"
		if v.Met {
			word = "met"
		}
		if v.Met != (v.Margin() >= 0) {
			t.Errorf("%s: met is %t with a margin of %g%%", target.Says, v.Met, v.Margin())
		}
		got[target.Subject.Metric] = word
	}
	want := map[result.Metric]string{
		result.Throughput1:        "met",    // more than HAProxy
		result.CPUPerGB1:          "missed", // more than HAProxy, where less was wanted
		result.CPUPer10kConns:     "met",    // a fifth of the cost: five times as many for a second
		result.SmallP99BesideBulk: "missed", // three times as long, twice is allowed
		result.IdlePerTunnel:      "met",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// sampled is a run in which something was absent and something failed.
func sampled() *result.Run {
	return &result.Run{
		Machine:  result.Machine{CPU: "Some CPU", CPUs: 2, Kernel: "6.1", Go: "go1.27", Congestion: "cubic", Files: 20000},
		Begun:    time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC),
		Rounds:   2,
		Window:   3 * time.Second,
		Idle:     9800,
		Variants: []string{result.None, result.Splice, result.Ambit, result.AmbitBare, result.HAProxyTuned, "envoy"},
		Versions: []result.Version{{Variant: result.None}, {Variant: result.HAProxyTuned, Version: "2.6.12"}},
		Absent:   []result.Lack{{Variant: "envoy", Why: "not installed"}},
		Failed:   []result.Lack{{Variant: result.Ambit, Metric: "round trips", Round: 1, Why: "connection reset"}},
		Samples: join(
			rounds(result.None, result.Throughput1, 4, 4.4),
			rounds(result.Splice, result.Throughput1, 2, 2.2),
			rounds(result.Ambit, result.Throughput1, 0.7, 0.8),
			rounds(result.AmbitBare, result.Throughput1, 0.8, 0.9),
			rounds(result.HAProxyTuned, result.Throughput1, 0.6, 0.65),
			rounds(result.Splice, result.CPUPerGB1, 0.2, 0.2),
			rounds(result.Ambit, result.CPUPerGB1, 1.2, 1.25),
			rounds(result.HAProxyTuned, result.CPUPerGB1, 1.1, 1.0),
			rounds(result.Ambit, result.IdlePerTunnel, 7.5),
		),
	}
}

// written is a folder of the run's files.
func written(t *testing.T, run *result.Run) string {
	t.Helper()
	dir := t.TempDir()
	if err := result.L4.Write(run, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReport(t *testing.T) {
	golden(t, "report.md", read(t, filepath.Join(written(t, sampled()), "l4.md")))
}

func TestSummaryFileIsAnArrayOfOneObjectForVariantAndMetric(t *testing.T) {
	run := sampled()
	dir := written(t, run)
	golden(t, "summary.json", read(t, filepath.Join(dir, "l4.json")))
	var back result.Run
	if err := json.Unmarshal(read(t, filepath.Join(dir, "l4-samples.json")), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(run, &back); diff != "" {
		t.Errorf("what the samples' file gives back: %s", diff)
	}
}

func TestSummaryFileOfNothingIsAnEmptyArray(t *testing.T) {
	if b := read(t, filepath.Join(written(t, &result.Run{}), "l4.json")); strings.TrimSpace(string(b)) != "[]" {
		t.Errorf("got %s", b)
	}
}

func TestChartsAreWellFormedAndToScale(t *testing.T) {
	dir := written(t, sampled())
	drawn, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range drawn {
		names = append(names, filepath.Base(path))
	}
	if diff := cmp.Diff([]string{"l4-connections.svg", "l4-cpu.svg", "l4-throughput.svg"}, names); diff != "" {
		t.Errorf("charts with something to show: %s", diff)
	}
	widths := barWidths(t, filepath.Join(dir, "l4-throughput.svg"))
	if len(widths) != 5 {
		t.Fatalf("%d bars, want one for each variant that has samples", len(widths))
	}
	if ratio := widths[0] / widths[1]; math.Abs(ratio-2) > 0.01 {
		t.Errorf("none is %g times as long as splice, its value is twice that", ratio)
	}
}

func TestEngineIsSetAgainstItsCounterparts(t *testing.T) {
	for _, target := range result.L7.EngineTargets {
		if target.Subject.Variant != result.AmbitBare || !strings.HasSuffix(target.Reference.Variant, "-plain") {
			t.Errorf("%s of %s against %s", target.Says, target.Subject.Variant, target.Reference.Variant)
		}
	}
	if n := len(result.L7.EngineTargets); n != len(result.L7.Targets) {
		t.Errorf("%d of %d targets are asked of the engine", n, len(result.L7.Targets))
	}
}

// barWidths reads the rectangles of an SVG but for the background.
func barWidths(t *testing.T, path string) (widths []float64) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for decoder := xml.NewDecoder(file); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return widths
		} else if err != nil {
			t.Fatal(err)
		}
		element, ok := token.(xml.StartElement)
		if !ok || element.Name.Local != "rect" {
			continue
		}
		for _, a := range element.Attr {
			var width float64
			if a.Name.Local == "width" && json.Unmarshal([]byte(a.Value), &width) == nil {
				widths = append(widths, width)
			}
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (go test -update writes it anew): %s", path, diff)
	}
}
