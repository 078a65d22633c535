package report

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

// session is one open stream of a node. The newest of a node counts.
type session struct {
	// Fixed.
	node, podName, version string
	// replaced is closed when a newer stream speaks for the node.
	replaced chan struct{}
	// wake has an element when releases are due.
	wake chan struct{}

	// Guarded by Registry.mu.
	mentioned map[types.UID]struct{}
	releases  []release
}

// release is a pod that may be let go, as its node asked at that time.
type release struct {
	uid   types.UID
	asked time.Time
}

// open begins a node's session and ends the one before.
func (r *Registry) open(nodeName string, hello *reportapi.Hello) *session {
	s := &session{
		node: nodeName, podName: hello.GetPodName(), version: cut(hello.GetVersion()),
		replaced: make(chan struct{}), wake: make(chan struct{}, 1), mentioned: map[types.UID]struct{}{},
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodeLocked(nodeName)
	if n.session != nil {
		close(n.session.replaced)
	}
	n.session, n.podName, n.version = s, s.podName, s.version
	n.heartbeat, n.rootsTold = r.cfg.Now(), false
	return s
}

// close ends a session. What the node said stays.
func (r *Registry) close(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n, ok := r.nodes[s.node]; ok && n.session == s {
		n.session = nil
	}
}

// release queues a Release; the caller holds Registry.mu.
func (s *session) release(uid types.UID, asked time.Time) {
	s.releases = append(s.releases, release{uid, asked})
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// due returns the releases to be sent now: those of pods that still ask.
func (r *Registry) due(s *session) (due []release) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodeLocked(s.node)
	if n.session != s {
		return nil
	}
	for _, queued := range s.releases {
		if w, asks := n.withdrawals[queued.uid]; asks && w.released && w.asked.Equal(queued.asked) {
			due = append(due, queued)
		}
	}
	s.releases = nil
	return due
}
