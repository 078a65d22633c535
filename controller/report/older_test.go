package report

import (
	"math"
	"slices"
	"testing"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

// What a node says is written into an object: no more than fits, and nothing but connections.
func TestOlderConnectionsThatANodeTellsOf(t *testing.T) {
	if n, first := olderOf(nil); n != 0 || first != nil {
		t.Errorf("of none: %d, %v", n, first)
	}
	said := &reportapi.OlderConnections{Count: math.MaxUint32, First: []string{"10.0.0.7:1 -> 10.0.0.8:2", "nonsense", "10.0.0.7:1 -> <b>", "[fd00::1]:1 -> [fd00::2]:2"}}
	n, first := olderOf(said)
	if want := []string{"10.0.0.7:1 -> 10.0.0.8:2", "[fd00::1]:1 -> [fd00::2]:2"}; n != math.MaxInt32 || !slices.Equal(first, want) {
		t.Errorf("%d, %v", n, first)
	}
	said.First = slices.Repeat([]string{"10.0.0.7:1 -> 10.0.0.8:2"}, 100)
	if _, first := olderOf(said); len(first) != maxOlder {
		t.Errorf("%d named", len(first))
	}
}
