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
		out: t.TempDir(), variants: []string{result.None, result.Splice, result.Ambit, result.AmbitBare, result.NoneSameNode, result.AmbitSameNode}, rounds: 1,
		warm: 50 * time.Millisecond, window: 200 * time.Millisecond, beside: 400 * time.Millisecond, idle: 100, settle: 200 * time.Millisecond, idleRounds: 1, slowRounds: 1,
	}
	outcome, err := benchmark(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(outcome.Failed)+len(outcome.Absent) > 0 {
		t.Errorf("failed: %+v, absent: %+v", outcome.Failed, outcome.Absent)
	}
	got := map[string][]result.Metric{}
	for _, x := range outcome.Samples.Summarize(outcome.Variants, result.L4.Metrics) {
		got[x.Variant] = append(got[x.Variant], x.Metric)
		if x.Median <= 0 && x.Metric != result.IdlePerTunnel && x.Unit != "s" && x.Unit != "s/GB" { // too short for CPU time's ticks
			t.Errorf("%s of %s is %g %s", x.Metric, x.Variant, x.Median, x.Unit)
		}
	}
	unasked := slices.DeleteFunc(slices.Clone(result.L4.Metrics), func(m result.Metric) bool { return m == result.FilesAfterMany })
	withoutProxies := slices.DeleteFunc(slices.Clone(unasked), func(m result.Metric) bool {
		return slices.Contains([]result.Metric{result.CPUPerGB1, result.CPUPerGB32, result.CPUPer10kConns, result.IdlePerTunnel}, m)
	})
	want := map[string][]result.Metric{
		result.None:      withoutProxies,
		result.Splice:    unasked,
		result.Ambit:     unasked,
		result.AmbitBare: unasked,
		result.NoneSameNode: {
			result.Throughput1, result.Throughput32, result.PingP50, result.PingP99, result.PingP999,
		},
		result.AmbitSameNode: {
			result.Throughput1, result.Throughput32, result.CPUPerGB1, result.CPUPerGB32, result.PingP50, result.PingP99, result.PingP999,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics: %s", diff)
	}
	if err := result.L4.Write(outcome, s.out); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"l4.json", "l4-samples.json", "l4.md"} {
		if info, err := os.Stat(filepath.Join(s.out, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A variant that cannot run, and one that breaks while it is measured, are in
// the outcome; the others' figures are too.
func TestWhatIsMissingIsSaid(t *testing.T) {
	t.Setenv("AMBIT_BENCH_ENVOY", "/nowhere/envoy")
	s := settings{variants: []string{result.None, "envoy"}, groups: []string{string(result.Throughput1)}, rounds: 1, window: 100 * time.Millisecond}
	outcome, err := benchmark(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(outcome.Absent) != 1 || outcome.Absent[0].Variant != "envoy" || !strings.Contains(outcome.Absent[0].Why, "/nowhere/envoy") {
		t.Errorf("absent: %+v", outcome.Absent)
	}
	if len(outcome.Samples) != 1 || outcome.Samples[0].Variant != result.None {
		t.Errorf("samples: %+v", outcome.Samples)
	}

	// This one is there and does not take its configuration.
	t.Setenv("AMBIT_BENCH_HAPROXY", "/bin/true")
	s.variants = []string{result.None, result.HAProxy}
	if outcome, err = benchmark(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if len(outcome.Failed) != 1 || outcome.Failed[0].Variant != result.HAProxy || outcome.Failed[0].Metric != result.FailedStart || len(outcome.Samples) != 1 {
		t.Errorf("failed: %+v, samples: %+v", outcome.Failed, outcome.Samples)
	}
}

func TestChoices(t *testing.T) {
	s, err := parse([]string{"-quick", "-out", "x", "-variants", "none,splice", "-metrics", "scaling idle_kib_per_tunnel", "-rounds", "7"})
	if err != nil {
		t.Fatal(err)
	}
	if s.out != "x" || s.rounds != 7 || s.window >= time.Second {
		t.Errorf("settings %+v", s)
	}
	some, err := chosen(s.variants)
	if err != nil || len(some) != 2 || some[0].Name != result.None || some[1].Name != result.Splice {
		t.Errorf("variants %+v, %v", some, err)
	}
	someGroups, err := chosenGroups(s)
	var names []string
	for _, g := range someGroups {
		names = append(names, g.Name)
	}
	if diff := cmp.Diff([]string{"throughput, 32 streams", "throughput, one CPU", "idle connections"}, names); diff != "" || err != nil {
		t.Errorf("groups: %s, %v", diff, err)
	}
	for _, wrong := range [][]string{{"-variants"}, {"extra"}, {"-window", "soon"}} {
		if _, err := parse(wrong); err == nil {
			t.Errorf("%v was accepted", wrong)
		}
	}
	if _, err := chosen([]string{"nobody"}); err == nil {
		t.Error("a variant that is none was accepted")
	}
	if _, err := chosenGroups(settings{groups: []string{"speed"}}); err == nil {
		t.Error("a metric that is none was accepted")
	}
}

func TestIdleConnectionsFitTheFilesThatMayBeOpen(t *testing.T) {
	if got := fitting(20_000, 0); got < 9_500 || got*2 >= 20_000 {
		t.Errorf("%d connections with 20000 files, two for each", got)
	}
	if got := fitting(20_000, 6); got < 3_000 || got*6 >= 20_000 {
		t.Errorf("%d connections with 20000 files, six for each", got)
	}
}
