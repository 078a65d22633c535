package server

import (
	"context"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// register follows a connection until forget. It is registered first and judged then,
// while whoever judges all takes the snapshot first and looks at who is registered
// then: no change is missed.
func (s *Server) register(session *Session) (forget func()) {
	s.mu.Lock()
	s.live[session] = struct{}{}
	s.mu.Unlock()
	session.rejudge(s.cfg.Snapshot())
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.live, session)
	}
}

// rejudge cuts the connection if it is granted no longer.
func (session *Session) rejudge(now *workload.Snapshot) {
	if err := session.judge(now); err != nil {
		session.cut(err)
	}
}

// follow judges all connections anew whenever the snapshot has changed, until ctx ends.
func (s *Server) follow(ctx context.Context) {
	for {
		now := s.cfg.Snapshot()
		s.mu.Lock()
		all := make([]*Session, 0, len(s.live))
		for session := range s.live {
			all = append(all, session)
		}
		s.mu.Unlock()
		for _, session := range all {
			session.rejudge(now)
		}
		select {
		case <-now.Changed():
		case <-ctx.Done():
			return
		}
	}
}
