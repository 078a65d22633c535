package rounds_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/e2e/bench/peer"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
	"github.com/ambit-mesh/ambit/e2e/bench/rounds"
)

// lane is one that is started and stopped in words alone.
type lane struct {
	name     string
	startErr error
	runs     bool
	starts   int
}

func (l *lane) Name() string    { return l.name }
func (l *lane) Version() string { return "1" }
func (l *lane) Runs() bool      { return l.runs }
func (l *lane) Stop() error     { l.runs = false; return nil }
func (l *lane) Start(context.Context) error {
	l.starts++
	l.runs = l.startErr == nil
	return l.startErr
}

func TestEachTakesItsTurnAsTheFirst(t *testing.T) {
	lanes := []*lane{{name: "x"}, {name: "y"}, {name: "same"}}
	everywhere := rounds.Group[*lane]{Name: "everywhere", Rounds: 2}
	apart := rounds.Group[*lane]{Name: "apart", Rounds: 2, Takes: func(l *lane) bool { return l.name != "same" }}
	rare := rounds.Group[*lane]{Name: "rare", Rounds: 1, Takes: apart.Takes}
	var got []string
	for _, turn := range rounds.Schedule(2, []rounds.Group[*lane]{everywhere, apart, rare}, lanes) {
		got = append(got, fmt.Sprint(turn.Round, " ", turn.Group.Name, " ", turn.Lane.name))
	}
	want := []string{
		"0 everywhere x", "0 everywhere y", "0 everywhere same",
		"0 apart y", "0 apart x",
		"0 rare x", "0 rare y",
		"1 everywhere y", "1 everywhere same", "1 everywhere x",
		"1 apart x", "1 apart y",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsMissingIsNotedAndTheOthersAreMeasured(t *testing.T) {
	run := &result.Run{}
	var running []*lane
	for _, l := range []*lane{{name: "fine"}, {name: "absent", startErr: &peer.Absent{Why: "not installed"}}, {name: "broken", startErr: errors.New("no")}} {
		ok, err := rounds.Start(t.Context(), run, l)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			running = append(running, l)
		}
	}
	if len(running) != 1 || len(run.Absent) != 1 || run.Absent[0].Variant != "absent" || len(run.Failed) != 1 || run.Failed[0].Metric != result.FailedStart {
		t.Fatalf("%d run, absent %+v, failed %+v", len(running), run.Absent, run.Failed)
	}
	fails := true
	group := rounds.Group[*lane]{Name: "speed", Rounds: 2, Measure: func(context.Context, *lane) (rounds.Values, error) {
		if fails {
			fails = false
			return nil, errors.New("it broke")
		}
		return rounds.Values{"speed": 7}, nil
	}}
	run.Failed = nil
	if err := rounds.Measure(t.Context(), run, rounds.Schedule(2, []rounds.Group[*lane]{group}, running)); err != nil {
		t.Fatal(err)
	}
	if len(run.Failed) != 1 || run.Failed[0].Metric != "speed" || !strings.Contains(run.Failed[0].Why, "broke") {
		t.Errorf("failed: %+v", run.Failed)
	}
	if len(run.Samples) != 1 || run.Samples[0].Round != 1 || running[0].starts != 2 {
		t.Errorf("samples %+v of a lane that was started %d times, want one of the second round, after a second start", run.Samples, running[0].starts)
	}
}

func TestChoices(t *testing.T) {
	groups := []rounds.Group[*lane]{{Name: "speed", Metrics: []result.Metric{"a", "b"}}, {Name: "size", Metrics: []result.Metric{"c"}}, {Name: "slow", Metrics: []result.Metric{"d"}, OnRequest: true}}
	for _, c := range []struct{ metrics, want []string }{
		{nil, []string{"speed", "size"}},
		{[]string{"b"}, []string{"speed"}},
		{[]string{"d", "a"}, []string{"speed", "slow"}},
	} {
		chosen, err := rounds.Chosen(groups, c.metrics)
		var got []string
		for _, g := range chosen {
			got = append(got, g.Name)
		}
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%v: %s, %v", c.metrics, diff, err)
		}
	}
	if _, err := rounds.Chosen(groups, []string{"nothing"}); err == nil {
		t.Error("a metric that is none was accepted")
	}
	self := func(s string) string { return s }
	if got, err := rounds.Pick([]string{"x", "y", "z"}, self, []string{"z", "x"}); err != nil || cmp.Diff([]string{"x", "z"}, got) != "" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := rounds.Pick([]string{"x"}, self, []string{"nobody"}); err == nil {
		t.Error("a variant that is none was accepted")
	}
}
