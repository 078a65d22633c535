package quota

import "sync"

// Shares is a capacity, of things that are not all of one size, that parties share. Three quarters of it are free for
// whoever comes first. The rest is divided: a party gets of it only while it
// holds less than its part. However much one holds, there is something left for
// every other.
type Shares struct {
	capacity int

	mu sync.Mutex
	// Guarded by mu.
	parties int
	held    int
}

// NewShares makes a capacity.
func NewShares(capacity int) *Shares { return &Shares{capacity: capacity} }

// Share is one party's.
type Share struct {
	of *Shares

	held int // guarded by Shares.mu
	left bool
}

// Join makes a party, until Leave.
func (s *Shares) Join() *Share {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parties++
	return &Share{of: s}
}

// Leave ends a party. What it holds counts until it is given back.
func (p *Share) Leave() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	if !p.left {
		p.left = true
		p.of.parties--
	}
}

// Take so much, until Give. It tells whether there is enough left for others.
func (p *Share) Take(n int) bool {
	s := p.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held >= s.capacity-s.capacity/4 && p.held >= max(1, s.capacity/4/max(1, s.parties)) {
		return false
	}
	s.held += n
	p.held += n
	return true
}

// Give back so much of what was taken.
func (p *Share) Give(n int) {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.of.held -= n
	p.held -= n
}

// Held is what all parties hold, and Capacity what they may.
func (s *Shares) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// Capacity is what all parties may hold.
func (s *Shares) Capacity() int { return s.capacity }
