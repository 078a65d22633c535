package pods

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestSteps(t *testing.T) {
	script, err := os.ReadFile("testdata/steps.txt")
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for line := range strings.Lines(string(script)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		flags, want, ok := strings.Cut(line, " -> ")
		if !ok {
			t.Fatalf("line without outcome: %s", line)
		}
		tested++
		t.Run(flags, func(t *testing.T) {
			state, act := next(parseObservation(t, flags))
			if got := fmt.Sprintf("%v %v", state, act); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
	if tested < 25 {
		t.Errorf("only %d steps in the script", tested)
	}
}

func parseObservation(t *testing.T, flags string) observation {
	t.Helper()
	var o observation
	for flag := range strings.FieldsSeq(flags) {
		switch flag {
		case "alive":
			o.alive = true
		case "running":
			o.running = true
		case "pinned":
			o.pinned = true
		case "sandbox-gone":
			o.sandboxGone = true
		case "granted":
			o.granted = true
		case "released":
			o.released = true
		case "enrolled":
			o.mode = Enrolled
		case "not-enrolled":
			o.mode = NotEnrolled
		case "misunderstood":
			o.mode = Misunderstood
		case "undetermined":
			o.mode = Undetermined
		default:
			t.Fatalf("unknown flag %q", flag)
		}
	}
	return o
}
