package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
)

// Tests run as the program itself does: in namespaces, with roles as children.
func TestMain(m *testing.M) {
	if role := process.Role(); role != "" {
		exit(runRole(role))
	}
	isolate()
	os.Exit(m.Run())
}

func TestSmallBenchmarkMeasuresAndReports(t *testing.T) {
	s := settings{
		out: t.TempDir(), variants: []string{result.None, result.Ambit, result.AmbitBare}, rounds: 1,
		warm: 50 * time.Millisecond, window: 500 * time.Millisecond, rate: 300, settle: 100 * time.Millisecond, memoryRounds: 1,
	}
	outcome, err := benchmark(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(outcome.Failed)+len(outcome.Absent) > 0 {
		t.Errorf("failed: %+v, absent: %+v", outcome.Failed, outcome.Absent)
	}
	got := map[string][]result.Metric{}
	for _, x := range outcome.Samples.Summarize(outcome.Variants, result.L7.Metrics) {
		got[x.Variant] = append(got[x.Variant], x.Metric)
		if x.Median <= 0 {
			t.Errorf("%s of %s is %g %s", x.Metric, x.Variant, x.Median, x.Unit)
		}
	}
	want := map[string][]result.Metric{
		result.None:      {result.RPS16, result.RPS64, result.LatencyP50, result.LatencyP99, result.LatencyP999},
		result.Ambit:     result.L7.Metrics,
		result.AmbitBare: result.L7.Metrics,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics: %s", diff)
	}
	if err := result.L7.Write(outcome, s.out); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"l7.json", "l7-samples.json", "l7.md", "l7-requests.svg"} {
		if info, err := os.Stat(filepath.Join(s.out, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A variant that cannot run is in the outcome; the others' figures are too.
func TestWhatIsMissingIsSaid(t *testing.T) {
	t.Setenv("AMBIT_BENCH_ENVOY", "/nowhere/envoy")
	t.Setenv("AMBIT_BENCH_HAPROXY", "/bin/true") // this one is there and does not take its configuration
	s := settings{
		variants: []string{result.None, result.HAProxy, result.Envoy}, metrics: []string{string(result.RPS16)}, rounds: 1, window: 100 * time.Millisecond,
	}
	outcome, err := benchmark(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(outcome.Absent) != 1 || outcome.Absent[0].Variant != result.Envoy || !strings.Contains(outcome.Absent[0].Why, "/nowhere/envoy") {
		t.Errorf("absent: %+v", outcome.Absent)
	}
	if len(outcome.Failed) != 1 || outcome.Failed[0].Variant != result.HAProxy || outcome.Failed[0].Metric != result.FailedStart {
		t.Errorf("failed: %+v", outcome.Failed)
	}
	if len(outcome.Samples) != 1 || outcome.Samples[0].Variant != result.None {
		t.Errorf("samples: %+v", outcome.Samples)
	}
}

func TestChoices(t *testing.T) {
	s, err := parse([]string{"-quick", "-out", "x", "-variants", "none,ambit", "-metrics", "rps_64", "-rounds", "7", "-rate", "5"})
	if err != nil {
		t.Fatal(err)
	}
	if s.out != "x" || s.rounds != 7 || s.window >= time.Second || s.rate != 5 || !slices.Equal(s.metrics, []string{"rps_64"}) {
		t.Errorf("settings %+v", s)
	}
	if some, err := chosen(s.variants); err != nil || len(some) != 2 || some[1].Name != result.Ambit {
		t.Errorf("variants %+v, %v", some, err)
	}
	for _, wrong := range [][]string{{"-variants"}, {"extra"}, {"-window", "soon"}} {
		if _, err := parse(wrong); err == nil {
			t.Errorf("%v was accepted", wrong)
		}
	}
}
