// Package result is what trials of faults measured: rows as JSON, and the same
// as a table to read.
package result

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Row is one fault in one mode.
type Row struct {
	Fault string `json:"fault"`
	// Mode is strict or permissive.
	Mode string `json:"mode"`
	// Attempted are new connections and attacks while the fault was in force, of
	// pods of that mode to each other.
	Attempted int `json:"attempted"`
	// CapturedPackets went by tunnel, from before the fault until after the recovery.
	CapturedPackets int `json:"captured_packets"`
	// PlaintextPackets did not, counted on the links of the nodes in the same time.
	PlaintextPackets int `json:"plaintext_packets"`
	// ControlPlaintextPackets are those of the same applications, at the same time
	// in the same capture, without the defence.
	ControlPlaintextPackets int `json:"control_plaintext_packets"`
	// Refused are the attempted connections that were not answered.
	Refused int `json:"refused"`
	// Survived are connections that stood before the fault and after the recovery,
	// of Kept.
	Survived int `json:"survived"`
	Kept     int `json:"kept"`
	// StrangersAnswered are attempts, while the fault was in force, of pods outside
	// the mesh to ones in it that were answered, of StrangersAttempted.
	StrangersAnswered  int `json:"strangers_answered"`
	StrangersAttempted int `json:"strangers_attempted"`
	// RecoveryMS is from the end of the cause until every connection is answered
	// again; -1: not in time.
	RecoveryMS int64 `json:"recovery_ms"`
	// SelfHealed: the cause went by itself, and the recovery counts from the fault.
	SelfHealed bool `json:"self_healed,omitempty"`
	// KnownOpen: it is known, and said, that plaintext passes.
	KnownOpen bool `json:"known_open,omitempty"`
	// Evidence are the first packets in plaintext, and what else went wrong.
	Evidence []string `json:"evidence,omitempty"`
}

// Strict is the mode in which nothing may pass.
const (
	Strict     = "strict"
	Permissive = "permissive"
)

// Problems says what a row does not show that it has to.
func (r Row) Problems() (problems []string) {
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if r.Attempted == 0 {
		wrong("nothing was attempted: the row proves nothing")
	}
	if r.ControlPlaintextPackets == 0 {
		wrong("the capture saw nothing of the control: it proves nothing")
	}
	if r.CapturedPackets == 0 {
		wrong("nothing went by tunnel, not even before the fault")
	}
	if r.RecoveryMS < 0 {
		wrong("no recovery")
	}
	if r.Mode == Strict && r.PlaintextPackets > 0 && !r.KnownOpen {
		wrong("%d packets in plaintext", r.PlaintextPackets)
	}
	if r.Mode == Strict && r.StrangersAnswered > 0 {
		wrong("%d strangers were answered", r.StrangersAnswered)
	}
	return problems
}

// File is the name of the results in their folder.
const File = "faults.json"

// Merge replaces those rows of a folder's results that were measured anew, and
// writes them with their table.
func Merge(folder string, rows []Row, about About) error {
	all, err := read(folder)
	if err != nil {
		return err
	}
	for _, row := range rows {
		all = slices.DeleteFunc(all, func(old Row) bool { return old.Fault == row.Fault && old.Mode == row.Mode })
		all = append(all, row)
	}
	order := map[string]int{}
	for i, f := range about.Faults {
		order[f.Name] = i + 1
	}
	all = slices.DeleteFunc(all, func(row Row) bool { return order[row.Fault] == 0 }) // a fault of that name is no more
	slices.SortStableFunc(all, func(a, b Row) int {
		return cmp.Or(order[a.Fault]-order[b.Fault], -cmp.Compare(a.Mode, b.Mode))
	})
	content, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make folder of results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, File), append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "faults.md"), about.table(all), 0o644); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func read(folder string) (rows []Row, err error) {
	content, err := os.ReadFile(filepath.Join(folder, File))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &rows)
	}
	if err != nil {
		return nil, fmt.Errorf("read earlier results: %w", err)
	}
	return rows, nil
}
