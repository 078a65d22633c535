package listen

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const drain = 200 * time.Millisecond

// rig is a Server whose connections echo until they are cut.
type rig struct {
	t      *testing.T
	l      *net.TCPListener
	server *Server
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, limit int) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, l: l.(*net.TCPListener), done: make(chan error, 1)}
	r.server = New(r.l, limit, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		r.done <- r.server.Run(ctx, drain, func(_, cut context.Context, conn *net.TCPConn, over func()) {
			defer over()
			stop := context.AfterFunc(cut, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			io.Copy(conn, conn)
		})
	}()
	t.Cleanup(func() {
		cancel()
		r.server.Cut()
		l.Close()
	})
	return r
}

func (r *rig) dial() net.Conn {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.l.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// echoes tells whether a connection is served, within a moment.
func (r *rig) echoes(conn net.Conn) bool {
	conn.SetDeadline(time.Now().Add(150 * time.Millisecond))
	conn.Write([]byte("x"))
	_, err := conn.Read(make([]byte, 1))
	return err == nil
}

func (r *rig) ended() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(5 * time.Second):
		r.t.Fatal("Run goes on")
		return nil
	}
}

func TestConnectionsBeyondTheLimitWait(t *testing.T) {
	r := start(t, 2)
	first, second, third := r.dial(), r.dial(), r.dial()
	if !r.echoes(first) || !r.echoes(second) {
		t.Fatal("connections within the limit are not served")
	}
	if r.echoes(third) {
		t.Fatal("a connection beyond the limit is served")
	}
	first.Close()
	third.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := third.Read(make([]byte, 1)); err != nil {
		t.Errorf("a connection that waited is not served: %v", err)
	}
}

func TestStoppingServesWhatIsQueued(t *testing.T) {
	for range 20 {
		r := start(t, 100)
		conn := r.dial()
		r.server.StopAccepting()
		if !r.echoes(conn) {
			t.Fatal("a connection that had been established was dropped")
		}
		conn.Close()
		r.cancel()
		if err := r.ended(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRunEndsWithTheLastConnection(t *testing.T) {
	r := start(t, 100)
	conn := r.dial()
	if !r.echoes(conn) {
		t.Fatal("not served")
	}
	r.cancel()
	time.AfterFunc(drain/4, func() { conn.Close() })
	began := time.Now()
	if err := r.ended(); err != nil || time.Since(began) > drain {
		t.Errorf("ended after %s: %v", time.Since(began), err)
	}
}

func TestDeadlineCuts(t *testing.T) {
	r := start(t, 100)
	if !r.echoes(r.dial()) {
		t.Fatal("not served")
	}
	r.cancel()
	began := time.Now()
	if err := r.ended(); err != nil || time.Since(began) < drain {
		t.Errorf("ended after %s: %v", time.Since(began), err)
	}
}

// A listener that is closed under a Server ends it, once its connections have.
func TestListenerIsClosed(t *testing.T) {
	r := start(t, 100)
	conn := r.dial()
	if !r.echoes(conn) {
		t.Fatal("not served")
	}
	r.l.Close()
	if !r.echoes(conn) {
		t.Error("closing the listener ended a connection")
	}
	conn.Close()
	if err := r.ended(); err == nil {
		t.Error("no error tells of it")
	}
}

// A listener may be served again by the next Server.
func TestListenerServesOn(t *testing.T) {
	r := start(t, 100)
	r.cancel()
	if err := r.ended(); err != nil {
		t.Fatal(err)
	}
	next := New(r.l, 1, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- next.Run(ctx, drain, func(_, _ context.Context, conn *net.TCPConn, over func()) {
			defer over()
			conn.Write([]byte("x"))
			conn.Close()
		})
	}()
	if _, err := r.dial().Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
