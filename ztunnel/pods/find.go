package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"
)

// scanFreshness lets workers that look for their sandboxes at the same time
// share one scan: it enters every namespace of the node.
const scanFreshness = 50 * time.Millisecond

type scanner struct {
	namespaces Namespaces

	mu   sync.Mutex
	at   time.Time
	last []Namespace
}

// scan returns the namespaces as they were at the given moment or later.
func (s *scanner) scan(notBefore time.Time) ([]Namespace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.After(notBefore) {
		return s.last, nil
	}
	at := time.Now()
	all, err := s.namespaces.Scan()
	if err != nil {
		return nil, fmt.Errorf("scan network namespaces: %w", err)
	}
	s.at, s.last = at, all
	return all, nil
}

// find looks for a pod's sandbox among the node's namespaces.
func (p *Pods) find(uid string, f facts) (Sandbox, error) {
	all, err := p.scanner.scan(time.Now().Add(-scanFreshness))
	if err != nil {
		return Sandbox{}, err
	}
	namespace, err := match(f.ips, f.lastSeen, p.claimedByOthers(uid), all)
	if err != nil {
		return Sandbox{}, err
	}
	return Sandbox{Path: namespace.Path, Inode: namespace.Inode, IPs: f.ips, Created: namespace.Created}, nil
}

// claimedByOthers returns the sandboxes that are known to be other pods'.
func (p *Pods) claimedByOthers(uid string) map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	claimed := make(map[string]bool)
	for _, w := range p.workers {
		if w.uid == uid {
			continue
		}
		if w.facts.sandbox != nil {
			claimed[w.facts.sandbox.Path] = true
		}
		if w.running != nil {
			claimed[w.sandbox.Path] = true
		}
	}
	return claimed
}

// isThere tells whether a sandbox's namespace still exists. Only its absence
// ends a capture: a namespace that cannot be looked at counts as there.
func (p *Pods) isThere(sandbox Sandbox) bool {
	inode, err := p.config.Namespaces.Inode(sandbox.Path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return inode == sandbox.Inode
}

// start takes one of the slots for capturing, and gives it back early when the
// capture takes too long: eight that hang must not be the end of the node.
func (p *Pods) start(ctx context.Context, target Target) (Running, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	free := sync.OnceFunc(func() { <-p.slots })
	defer free()
	timer := time.AfterFunc(slotTimeout, free)
	defer timer.Stop()
	ctx, cancel := context.WithTimeout(ctx, captureTimeout)
	defer cancel()
	return p.config.Dataplane.Start(ctx, target)
}
