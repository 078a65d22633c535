package succession

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"time"
)

// cedeTimeout is many times what a process takes that is well to stop looking
// after its node.
const cedeTimeout = 15 * time.Second

// A Predecessor is the ztunnel of this node that runs already.
type Predecessor struct {
	conn net.Conn
	from *bufio.Reader
	gone chan struct{} // closed by watch
	said chan error    // what watch heard
}

// Find returns the ztunnel that listens at path; nil if none does.
func Find(path string) (*Predecessor, error) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil // what a process leaves that was killed refuses
	}
	if err != nil {
		return nil, fmt.Errorf("find the ztunnel before: %w", err)
	}
	p := &Predecessor{conn: conn, from: bufio.NewReaderSize(conn, maxLine), gone: make(chan struct{}), said: make(chan error, 1)}
	go p.watch()
	return p, nil
}

// watch hears the one thing that the predecessor says, and its end.
func (p *Predecessor) watch() {
	defer close(p.gone)
	err := hear(p.from, ceded)
	p.said <- err
	if err == nil {
		_, _ = p.from.ReadByte()
	}
}

// Gone is closed when it ended.
func (p *Predecessor) Gone() <-chan struct{} { return p.gone }

// TakeOver returns when it no longer looks after the node: nil also if it ended
// instead. An error means that it neither ceded nor ended.
func (p *Predecessor) TakeOver(ctx context.Context) error {
	if say(p.conn, takeOver) != nil {
		return nil // it has ended
	}
	ctx, cancel := context.WithTimeout(ctx, cedeTimeout)
	defer cancel()
	select {
	case err := <-p.said:
		if errors.Is(err, errUnknown) {
			return fmt.Errorf("take over the node: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("take over the node: %w", ctx.Err())
	}
}

// Captured tells it that all pods are captured.
func (p *Predecessor) Captured() {
	_ = say(p.conn, captured) // who has ended needs not know
}
