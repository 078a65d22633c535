package exchange

import (
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// The budget of retries is what the Gateway API has where a service does not say (its
// BackendTrafficPolicy): a fifth of the requests, and ten a second in any case.
const (
	retryShare  = 5
	fewRetries  = 10
	budgetEvery = 10 * time.Second
)

// budget bounds the retries of a service, so that a failure does not multiply what caused
// it. Each service has its own: where one fails, others are asked again as before.
type budget struct {
	mu sync.Mutex
	// Guarded by mu: requests are under way, counted came since reset.
	requests, retries, counted int
	reset                      time.Time
}

func (b *budget) begin(now time.Time) {
	b.mu.Lock()
	b.rollLocked(now)
	b.requests++
	b.counted++
	b.mu.Unlock()
}

func (b *budget) end() {
	b.mu.Lock()
	b.requests--
	b.mu.Unlock()
}

// rollLocked begins to count anew from time to time.
func (b *budget) rollLocked(now time.Time) {
	if now.Sub(b.reset) >= budgetEvery {
		b.reset, b.retries, b.counted = now, 0, b.requests
	}
}

// retry tells whether one more is within the budget of the last seconds.
func (b *budget) retry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rollLocked(time.Now())
	if b.retries >= max(fewRetries*int(budgetEvery/time.Second), b.counted/retryShare) {
		return false
	}
	b.retries++
	return true
}

// unused tells that nobody asks, and nothing is to be remembered.
func (b *budget) unused(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests == 0 && now.Sub(b.reset) >= budgetEvery
}

// budgets are those of all services. The zero value is ready to use.
type budgets struct {
	mu sync.Mutex
	// Guarded by mu. By key, the empty one is of endpoints that are no service's.
	all     map[string]*budget
	sweptAt time.Time
}

// sweepEvery is how often budgets are forgotten that nobody uses.
const sweepEvery = time.Minute

// begin counts a request. Whoever calls it calls end of what it returns.
func (b *budgets) begin(service *workload.Service) *budget {
	key := ""
	if service != nil {
		key = service.Key
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.sweptAt) >= sweepEvery {
		b.sweptAt = now
		for key, one := range b.all {
			if one.unused(now) {
				delete(b.all, key)
			}
		}
	}
	one := b.all[key]
	if one == nil {
		if one = new(budget); b.all == nil {
			b.all = map[string]*budget{}
		}
		b.all[key] = one
	}
	one.begin(now) // before it can be swept
	return one
}
