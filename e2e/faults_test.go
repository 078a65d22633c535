//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/faults/fault"
	"github.com/ambit-mesh/ambit/e2e/faults/trial"
	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// brief is how long each is in force: a SYN is repeated in that time.
const brief = 2 * time.Second

// Those faults that take seconds, in every mode; `make faults` has all of them.
// In strict mode nothing is sent in plaintext, and whoever is outside the mesh is
// not answered; whatever the mode, the mesh recovers.
func TestFaultsThatTakeSeconds(t *testing.T) {
	bed, err := testbed.Find()
	if err != nil {
		t.Fatal(err)
	}
	bench, err := trial.New(t.Context(), bed, trial.Modes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bench.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, f := range fault.All() {
		if !f.Quick {
			continue
		}
		f.Hold = brief
		t.Run(f.Name, func(t *testing.T) {
			rows, err := bench.Run(t.Context(), f)
			if err != nil {
				t.Error(err)
			}
			for _, row := range rows {
				for _, problem := range row.Problems() {
					t.Errorf("%s: %s", row.Mode, problem)
				}
				if t.Failed() {
					t.Logf("%+v", row)
				}
			}
		})
	}
}
