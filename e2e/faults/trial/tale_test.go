package trial

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/faults/orders"
	"github.com/ambit-mesh/ambit/e2e/faults/result"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

// told writes a tale: attempts of 100 ms each, failed where the letter is f.
func told(t *testing.T, kind orders.Kind, target, script string) (*tales, name) {
	t.Helper()
	who := name{"here", "first"}
	all := newTales()
	tell(t, all, who, kind, target, script)
	return all, who
}

func tell(t *testing.T, all *tales, who name, kind orders.Kind, target, script string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tale")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i, letter := range script {
		a := orders.Attempt{Began: at(i * 100), Ended: at(i*100 + 50), Kind: kind, Target: target, Conn: 7}
		if letter == 'f' {
			a.Failed = "ECONNREFUSED"
		}
		if err := json.NewEncoder(file).Encode(a); err != nil {
			t.Fatal(err)
		}
	}
	file.WriteString(`{"Began":"torn by a power cut`)
	all.follow(path, who)
}

func TestRecoveryIsTheFirstOfAnswersInARow(t *testing.T) {
	for script, want := range map[string]time.Duration{
		"aaaaaaaaaa": 0,                      // never failed
		"aafaaaaaaa": 150 * time.Millisecond, // from 200 ms: the answer of 300 ms ended at 350 ms
		"aafaffaaaa": 450 * time.Millisecond, // a single answer is none
		"affffffaaa": -1,                     // three in a row are not enough
		"aaaaaaaaaf": -1,
	} {
		all, who := told(t, orders.New, "far/4", script)
		pairs := []pair{{who, "far/4"}}
		got := time.Duration(-1)
		if len(all.missing(pairs, at(200))) == 0 {
			got = all.recovered(pairs, at(200))
		}
		if got != want {
			t.Errorf("%s: recovered after %v, want %v", script, got, want)
		}
	}
}

// Who asks for the first time after the fault has not gone on all the while.
func TestANewcomerRecoversWithItsFirstAnswer(t *testing.T) {
	all, who := told(t, orders.New, "far/4", "aaaa")
	pairs := []pair{{who, "far/4"}}
	if missing := all.missing(pairs, at(-1000)); len(missing) != 0 {
		t.Errorf("missing: %v", missing)
	}
	if got := all.recovered(pairs, at(-1000)); got != 1050*time.Millisecond {
		t.Errorf("recovered after %v, want 1.05s", got)
	}
}

func TestAPairThatNeverAskedIsMissing(t *testing.T) {
	all, who := told(t, orders.New, "far/4", "aaaaaa")
	if missing := all.missing([]pair{{who, "far/4"}, {who, "near/4"}}, at(0)); len(missing) != 1 || missing[0].target != "near/4" {
		t.Errorf("missing: %v", missing)
	}
}

func TestAttemptsInTheWindowAreCounted(t *testing.T) {
	all, who := told(t, orders.New, "far/4", "aaffaaaa")
	tell(t, all, name{"control", "far"}, orders.New, stranger+"strict:first/4", "aaaffaaa")
	tell(t, all, name{"control", "far"}, orders.New, "first/4", "aaaaaaaa")
	tell(t, all, who, orders.Attacked, "10.0.0.1:1", "affa")
	row := result.Row{Mode: "strict"}
	all.count(&row, map[name]bool{who: true}, nil, span{at(100), at(400)})
	if row.Attempted != 4+3 || row.Refused != 2 {
		t.Errorf("%d attempted, %d refused, want 7 (three of them attacks) and 2", row.Attempted, row.Refused)
	}
	if row.StrangersAttempted != 4 || row.StrangersAnswered != 2 {
		t.Errorf("strangers: %d of %d were answered, want 2 of 4", row.StrangersAnswered, row.StrangersAttempted)
	}
}

func TestAKeptConnectionSurvivesIfItIsAnsweredAfterwards(t *testing.T) {
	for script, survived := range map[string]int{"aaaaaaaa": 1, "aaaaaf": 0, "aaa": 0} {
		all, who := told(t, orders.Kept, "far/4", script)
		row := result.Row{Mode: "strict"}
		all.count(&row, map[name]bool{who: true}, map[connection]bool{{pair{who, "far/4"}, 7}: true, {pair{name{"other", "x"}, "far/4"}, 7}: true}, span{at(100), at(400)})
		if row.Kept != 1 || row.Survived != survived {
			t.Errorf("%s: %d of %d survived, want %d of 1", script, row.Survived, row.Kept, survived)
		}
	}
}
