package succession

import (
	"bufio"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// FuzzWire: whatever is at the other end of the socket, and however it says it, the node is handed over only to who asked for it, is
// taken over only from who ceded it or has ended, and nobody waits for who has ended.
func FuzzWire(f *testing.F) {
	for _, said := range []string{"", "take over\n", "take over\ncaptured\n", "take over\ncaptured\nmore", "captured\n", "ceded\n", "ceded", "ceded\r\n", "no\n", "\n", strings.Repeat("x", 2*maxLine)} {
		f.Add([]byte(said), byte(3))
	}
	f.Fuzz(func(t *testing.T, said []byte, piece byte) {
		heir := New("", slog.New(slog.DiscardHandler))
		overHeard(t, said, piece, false, func(conn net.Conn) { heir.hear(t.Context(), conn) })
		asked := strings.HasPrefix(string(said), "take over\n")
		captures := strings.HasPrefix(string(said), "take over\ncaptured\n")
		if isClosed(heir.Asked()) != asked || isClosed(heir.Captured()) != captures || isClosed(heir.Lost()) != asked {
			t.Errorf("%q: asked %v, captured %v, lost %v", said, isClosed(heir.Asked()), isClosed(heir.Captured()), isClosed(heir.Lost()))
		}

		overHeard(t, said, piece, true, func(conn net.Conn) {
			before := &Predecessor{conn: conn, from: bufio.NewReaderSize(conn, maxLine), gone: make(chan struct{}), said: make(chan error, 1)}
			go before.watch()
			err := before.TakeOver(t.Context())
			line, _, whole := strings.Cut(string(said), "\n")
			if other := len(line) >= maxLine || whole && line != ceded; (err != nil) != other || err != nil && !errors.Is(err, errUnknown) {
				t.Errorf("%q: taken over: %v", said, err)
			}
			select {
			case <-before.Gone():
			case <-time.After(5 * time.Second):
				t.Errorf("%q: it has ended, and nobody notices", said)
			}
		})
	})
}

// overHeard has one end say something in pieces, once it was asked or at once, and end, while the other is served.
func overHeard(t *testing.T, said []byte, piece byte, asked bool, serve func(net.Conn)) {
	t.Helper()
	mine, theirs := net.Pipe()
	var group sync.WaitGroup
	group.Go(func() {
		defer theirs.Close()
		if asked {
			if _, err := theirs.Read(make([]byte, maxLine)); err != nil {
				t.Error(err)
			}
		}
		for rest := said; len(rest) > 0; {
			n := min(len(rest), int(piece)+1)
			if _, err := theirs.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
	})
	serve(mine)
	mine.Close()
	group.Wait()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
