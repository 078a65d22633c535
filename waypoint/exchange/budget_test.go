package exchange

import (
	"testing"
	"testing/synctest"
	"time"
)

// However many attempts routes allow, failures multiply by a fifth at most.
func TestRetriesStayWithinTheirBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b budget
		retried := 0
		const requests = 100_000
		for range requests {
			b.begin()
			for range 5 {
				if b.retry() {
					retried++
				}
			}
			b.end()
			time.Sleep(time.Millisecond)
		}
		if most := requests * 12 / 10; requests+retried > most {
			t.Errorf("%d requests became %d, want at most %d", requests, requests+retried, most)
		}
		// Where there are few, each may be tried again.
		time.Sleep(time.Minute)
		b.begin()
		defer b.end()
		if !b.retry() {
			t.Error("a single one may not be tried again")
		}
	})
}
