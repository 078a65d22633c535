package feed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	// A "no" is trusted that long: shorter than a pod takes from its address
	// to its first listener, long enough for a scan of addresses not to
	// reach the controller.
	negativeFor = 5 * time.Second
	// Bounds for a pod that scans the pod ranges.
	maxNegatives = 4096
	maxQuestions = 1024
)

// ErrTooManyQuestions says that a question was not even asked.
var ErrTooManyQuestions = errors.New("too many open questions")

// Lookup asks the controller whether addr belongs to the mesh, and waits until
// it has answered or ctx ends. When it returns true, the store knows addr. An
// error means that nobody knows; it must not be taken for a no.
func (c *Client) Lookup(ctx context.Context, addr netip.Addr) (found bool, err error) {
	addr = addr.Unmap().WithZone("")
	if found, err = known(c.config.Store.Snapshot(), addr); found || err != nil {
		return found, err
	}
	q, negative, err := c.questions.join(addr)
	if negative || err != nil {
		return false, err
	}
	defer c.questions.leave(addr, q)
	select {
	case <-q.answered:
		return q.found, q.err
	case <-ctx.Done():
		return false, fmt.Errorf("ask the controller for %s: %w", addr, context.Cause(ctx))
	}
}

// known tells whether addr is one of the mesh; an error if it is one that could
// not be read.
func known(snapshot *workload.Snapshot, addr netip.Addr) (bool, error) {
	if _, ok := snapshot.ServiceByAddr(addr); ok {
		return true, nil
	}
	if _, ok := snapshot.WorkloadByAddr(addr); ok {
		return true, nil
	}
	if rejection, ok := snapshot.RejectedByAddr(addr); ok {
		return false, rejection
	}
	return false, nil
}

// question is one address that somebody waits for.
type question struct {
	askers int // guarded by questions.mu
	// answered is closed when found and err are set.
	answered chan struct{}
	found    bool
	err      error
}

// questions are what the stream still has to ask or to hear.
type questions struct {
	// wake tells the stream that what is open has changed.
	wake chan struct{}

	mu         sync.Mutex
	unanswered map[netip.Addr]*question
	// negatives are addresses that are not in the mesh, until when.
	negatives map[netip.Addr]time.Time
}

func newQuestions() *questions {
	return &questions{
		wake:       make(chan struct{}, 1),
		unanswered: map[netip.Addr]*question{},
		negatives:  map[netip.Addr]time.Time{},
	}
}

// join returns the question about addr, shared with all who ask it now.
// Negative means that it was answered with no a short while ago.
func (qs *questions) join(addr netip.Addr) (q *question, negative bool, err error) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if time.Now().Before(qs.negatives[addr]) {
		return nil, true, nil
	}
	q, ok := qs.unanswered[addr]
	if !ok {
		if len(qs.unanswered) >= maxQuestions {
			return nil, false, ErrTooManyQuestions
		}
		q = &question{answered: make(chan struct{})}
		qs.unanswered[addr] = q
		qs.wakeLocked()
	}
	q.askers++
	return q, false, nil
}

// leave drops the question when nobody waits for it any more.
func (qs *questions) leave(addr netip.Addr, q *question) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q.askers--; q.askers == 0 && qs.unanswered[addr] == q {
		delete(qs.unanswered, addr)
		qs.wakeLocked()
	}
}

// open returns the questions without an answer, by their keys.
func (qs *questions) open() map[string]*question {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	open := make(map[string]*question, len(qs.unanswered))
	for addr, q := range qs.unanswered {
		open[workload.AddressKey(addr)] = q
	}
	return open
}

// answer settles the questions that snapshot answers, and those that the
// controller mentioned without adding anything to it.
func (qs *questions) answer(snapshot *workload.Snapshot, mentioned map[string]bool) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for addr, q := range qs.unanswered {
		found, err := known(snapshot, addr)
		if !found && err == nil && !mentioned[workload.AddressKey(addr)] {
			continue
		}
		q.found, q.err = found, err
		if !found && err == nil {
			qs.rememberLocked(addr)
		}
		delete(qs.unanswered, addr)
		close(q.answered)
	}
}

// rememberLocked notes a no, in place of those that ran out, or of any.
func (qs *questions) rememberLocked(addr netip.Addr) {
	now := time.Now()
	if len(qs.negatives) >= maxNegatives {
		for old, until := range qs.negatives {
			if now.After(until) {
				delete(qs.negatives, old)
			}
		}
	}
	for old := range qs.negatives {
		if len(qs.negatives) < maxNegatives {
			break
		}
		delete(qs.negatives, old)
	}
	qs.negatives[addr] = now.Add(negativeFor)
}

func (qs *questions) wakeLocked() {
	select {
	case qs.wake <- struct{}{}:
	default:
	}
}
