package hbone

import "testing"

// TestLateStreams: what was remembered is known, what was not is not, and of what
// was forgotten nothing is claimed.
func TestLateStreams(t *testing.T) {
	var late lateStreams
	if late.maybe(1) {
		t.Error("1, before any")
	}
	for id := uint32(1); id < 4*keptLate; id += 4 {
		late.add(id)
	}
	if len(late.ids) != keptLate {
		t.Errorf("%d remembered", len(late.ids))
	}
	for id := uint32(1); id < 4*keptLate; id += 2 {
		if want := id%4 == 1; late.maybe(id) != want {
			t.Errorf("%d: %t", id, !want)
		}
	}
	late.add(9001)
	late.add(9003)
	if len(late.ids) != keptLate || cap(late.ids) > 2*keptLate {
		t.Errorf("%d remembered, in %d", len(late.ids), cap(late.ids))
	}
	for id, want := range map[uint32]bool{1: true, 3: true, 5: true, 7: false, 9: true, 11: false, 9001: true, 9003: true, 9005: false} {
		if late.maybe(id) != want {
			t.Errorf("%d, once 1 and 5 were forgotten: %t", id, !want)
		}
	}
}
