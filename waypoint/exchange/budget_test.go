package exchange

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// However many attempts routes allow, failures multiply by a fifth at most.
func TestRetriesStayWithinTheirBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all budgets
		service, other := &workload.Service{Key: "shop/orders"}, &workload.Service{Key: "shop/carts"}
		retried := 0
		const requests = 100_000
		for range requests {
			b := all.begin(service)
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
		// What one service has spent is not missing from another's.
		b := all.begin(other)
		if !b.retry() {
			t.Error("where one service fails, another one's requests are not tried again")
		}
		b.end()
		// Where there are few, each may be tried again.
		time.Sleep(time.Minute)
		b = all.begin(service)
		if !b.retry() {
			t.Error("a single one may not be tried again")
		}
		b.end()
		if n := len(all.all); n != 1 {
			t.Errorf("%d services are remembered, of which one is asked", n)
		}
	})
}
