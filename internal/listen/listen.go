// Package listen accepts the connections of one listener and sees them out.
//
//	accept, no more at a time than the limit -> serve, each in its goroutine
//	stop accepting -> drain -> cut
//
// Invariants: what the kernel has queued when accepting stops is still served;
// when Run returns, every connection is over.
//
// The listener is not closed: it belongs to whoever made it.
package listen

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// Limit of the connections of one pod and listener. It is what a client
	// has ephemeral ports for towards one address, more than that only
	// piles up; beyond it connections wait in the listener's queue.
	Limit = 32768
	// backlogGrace is how long the queue of a listener that stops is still
	// emptied: connections in it have been established as far as their
	// clients know.
	backlogGrace = 50 * time.Millisecond
	// Accepting pauses after an error, such as too many open files, which will
	// not go away by trying at once.
	pauseAfterError = 50 * time.Millisecond
)

// ErrDrained is why a connection is cut that outlives the time to drain.
var ErrDrained = errors.New("time to drain is over")

// Serve carries one connection, closes it, and says with over, once, that it is.
// It may return before. While draining, no new work is to begin in it; when cut
// ends, it is over.
type Serve func(draining, cut context.Context, conn *net.TCPConn, over func())

// Server serves one listener.
type Server struct {
	listener *net.TCPListener
	log      *slog.Logger
	slots    chan struct{}

	stop    chan struct{}
	once    sync.Once
	cut     context.Context
	cutNow  context.CancelCauseFunc
	serving sync.WaitGroup
}

// New makes a Server that serves at most limit connections at a time. The
// listener's deadline is the Server's from now on.
func New(l *net.TCPListener, limit int, log *slog.Logger) *Server {
	l.SetDeadline(time.Time{})
	s := &Server{listener: l, log: log, slots: make(chan struct{}, limit), stop: make(chan struct{})}
	s.cut, s.cutNow = context.WithCancelCause(context.Background())
	return s
}

// Run serves until ctx ends, then drains: it returns once all connections have
// ended, which they must when drain has passed. An error means that accepting
// had to stop before.
func (s *Server) Run(ctx context.Context, drain time.Duration, serve Serve) error {
	defer s.cutNow(nil)
	unregister := context.AfterFunc(ctx, s.StopAccepting)
	defer unregister()

	err := s.accept(ctx, serve)
	if err == nil {
		<-ctx.Done()
	}
	deadline := time.AfterFunc(drain, s.Cut)
	defer deadline.Stop()
	s.serving.Wait()
	return err
}

// StopAccepting leaves new connections to whoever listens next; those that live
// go on.
func (s *Server) StopAccepting() {
	s.once.Do(func() {
		close(s.stop)
		s.listener.SetDeadline(time.Now().Add(backlogGrace))
	})
}

// Cut ends all connections.
func (s *Server) Cut() { s.cutNow(ErrDrained) }

func (s *Server) accept(ctx context.Context, serve Serve) error {
	for {
		if !s.takeSlot() {
			return nil
		}
		conn, err := s.listener.AcceptTCP()
		if err == nil {
			s.serving.Add(1)
			go serve(ctx, s.cut, conn, s.over)
			continue
		}
		<-s.slots
		switch {
		case s.stopped():
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
		s.log.Warn("connection not accepted", "listener", s.listener.Addr().String(), "error", err)
		select {
		case <-time.After(pauseAfterError):
		case <-s.stop:
		}
	}
}

// over gives a connection's slot back.
func (s *Server) over() {
	<-s.slots
	s.serving.Done()
}

// takeSlot waits for a free slot. Having stopped is no reason not to take one
// that is free: what is queued is still accepted, until the listener's deadline.
func (s *Server) takeSlot() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
	}
	select {
	case s.slots <- struct{}{}:
		return true
	case <-s.stop:
		return false
	}
}

func (s *Server) stopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}
