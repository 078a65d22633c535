package result

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func row(fault, mode string, plaintext int) Row {
	return Row{Fault: fault, Mode: mode, Attempted: 10, CapturedPackets: 100, PlaintextPackets: plaintext, ControlPlaintextPackets: 50, RecoveryMS: 1200}
}

func TestARowHasToProveSomething(t *testing.T) {
	if problems := row("x", Strict, 0).Problems(); len(problems) != 0 {
		t.Errorf("a good row has problems: %v", problems)
	}
	if problems := row("x", Permissive, 3).Problems(); len(problems) != 0 {
		t.Errorf("plaintext in permissive mode is a problem: %v", problems)
	}
	open := row("x", Strict, 3)
	open.KnownOpen = true
	if problems := open.Problems(); len(problems) != 0 {
		t.Errorf("what is known to be open is a problem: %v", problems)
	}
	for name, spoil := range map[string]func(*Row){
		"plaintext":         func(r *Row) { r.PlaintextPackets = 1 },
		"nothing attempted": func(r *Row) { r.Attempted = 0 },
		"blind capture":     func(r *Row) { r.ControlPlaintextPackets = 0 },
		"no tunnel":         func(r *Row) { r.CapturedPackets = 0 },
		"no recovery":       func(r *Row) { r.RecoveryMS = -1 },
		"a stranger":        func(r *Row) { r.StrangersAnswered = 1 },
	} {
		r := row("x", Strict, 0)
		spoil(&r)
		if len(r.Problems()) != 1 {
			t.Errorf("%s: problems %v, want one", name, r.Problems())
		}
	}
}

// Rows that are not measured now stay; those of a fault that is no more go.
func TestResultsAreMerged(t *testing.T) {
	folder := t.TempDir()
	about := About{Machine: "2 cores", Version: "v1", Faults: []Fault{{Name: "a", What: "A.", How: "By a."}, {Name: "b", What: "B.", How: "By b.", Open: "the door."}, {Name: "gone"}}}
	if err := Merge(folder, []Row{row("b", Permissive, 3), row("b", Strict, 0), row("gone", Strict, 0)}, about); err != nil {
		t.Fatal(err)
	}
	about.Faults = about.Faults[:2]
	if err := Merge(folder, []Row{row("a", Strict, 2), row("b", Strict, 1)}, about); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(folder, File))
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(content, &rows); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, r["fault"].(string)+" "+r["mode"].(string))
		for _, key := range []string{"attempted", "captured_packets", "plaintext_packets", "control_plaintext_packets", "refused", "survived", "recovery_ms"} {
			if _, ok := r[key].(float64); !ok {
				t.Errorf("%v has no number %s", r, key)
			}
		}
	}
	if strings.Join(got, ", ") != "a strict, b strict, b permissive" {
		t.Errorf("rows: %v", got)
	}
	table, err := os.ReadFile(filepath.Join(folder, "faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| a | strict | 10 | 100 | **2** | 50 |", "- **b**: B. By b. Known to be open: the door.", "## What does not hold", "- a, strict: 2 packets in plaintext"} {
		if !strings.Contains(string(table), want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
}
