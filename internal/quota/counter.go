package quota

import "sync"

// Counter lets every key hold up to a limit.
type Counter[K comparable] struct {
	limit int

	mu   sync.Mutex
	held map[K]int // guarded by mu; none is 0
}

// NewCounter makes a Counter. A limit of 0 refuses everybody.
func NewCounter[K comparable](limit int) *Counter[K] {
	return &Counter[K]{limit: limit, held: map[K]int{}}
}

// Take one for key, until Give. It tells whether key may have one more.
func (c *Counter[K]) Take(key K) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[key] >= c.limit {
		return false
	}
	c.held[key]++
	return true
}

// Give back one that key took.
func (c *Counter[K]) Give(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[key]--; c.held[key] <= 0 {
		delete(c.held, key)
	}
}

// Limit is what each key may hold.
func (c *Counter[K]) Limit() int { return c.limit }

// Held is what key holds.
func (c *Counter[K]) Held(key K) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[key]
}
