package succession

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/rootonly"
)

// An Heir is the ztunnel that is to come, as the one that runs waits for it.
type Heir struct {
	// Fixed after New.
	path   string
	logger *slog.Logger
	asked, captured,
	lost chan struct{} // closed in this order, or not at all

	// Guarded by mu.
	mu   sync.Mutex
	conn net.Conn // of the one that asked
}

// New returns an heir that will come by the socket at path.
func New(path string, logger *slog.Logger) *Heir {
	return &Heir{path: path, logger: logger, asked: make(chan struct{}), captured: make(chan struct{}), lost: make(chan struct{})}
}

// Asked is closed when the next process asks for the node.
func (h *Heir) Asked() <-chan struct{} { return h.asked }

// Captured is closed when it has captured all pods.
func (h *Heir) Captured() <-chan struct{} { return h.captured }

// Lost is closed when it ended after it asked.
func (h *Heir) Lost() <-chan struct{} { return h.lost }

// Cede tells it that nobody looks after the node any more.
func (h *Heir) Cede() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn != nil {
		_ = say(h.conn, ceded) // whether it still lives, Lost tells
	}
}

// Wait waits for the next process until the context ends, and then listens to
// the one that asked.
func (h *Heir) Wait(ctx context.Context) error {
	listener, err := rootonly.Listen(h.path, h.logger)
	if err != nil {
		return fmt.Errorf("wait for the next ztunnel: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()
	var group sync.WaitGroup
	defer group.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for the next ztunnel: %w", err)
		}
		group.Go(func() { h.hear(ctx, conn) })
	}
}

// hear follows one process; the first that asks is the heir.
func (h *Heir) hear(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	from := bufio.NewReaderSize(conn, maxLine)
	if err := hear(from, takeOver); err != nil {
		if ctx.Err() == nil {
			h.logger.Warn("another ztunnel came, and ended before it took over", "error", err)
		}
		return
	}
	h.mu.Lock()
	first := h.conn == nil
	if first {
		h.conn = conn
	}
	h.mu.Unlock()
	if !first {
		h.logger.Warn("a second ztunnel asks for the node: refused")
		return
	}
	close(h.asked)
	if err := hear(from, captured); err == nil {
		close(h.captured)
		_, _ = from.ReadByte()
	}
	if ctx.Err() == nil {
		close(h.lost)
	}
}
