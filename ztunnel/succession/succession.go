// Package succession hands a node from one ztunnel to the next while both run,
// so that no new connection waits for either and the old ones need not end.
//
//	succession.go  the socket, and what is said on it
//	heir.go        the side of the process that hands over
//	predecessor.go the side of the process that takes over
//
// The next process connects, and says nothing until it could serve. Then it
// asks for the node; the former one stops looking after it, but goes on
// accepting, and says so. Once the next process has captured all pods, it says
// that, and the former one accepts no more and carries what is left.
//
// Invariants: at each moment one process at most looks after the node, and while
// one lives somebody accepts; the end of a connection is the end of the process
// that held it.
package succession

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
)

// What is said, a line each.
const (
	takeOver = "take over"
	ceded    = "ceded"
	captured = "captured"
)

// maxLine is more than any of them.
const maxLine = 64

func say(conn net.Conn, what string) error {
	if _, err := conn.Write([]byte(what + "\n")); err != nil {
		return fmt.Errorf("say %q: %w", what, err)
	}
	return nil
}

// errUnknown: the other one speaks, and not what is known here.
var errUnknown = errors.New("not understood")

// hear demands a line.
func hear(from *bufio.Reader, want string) error {
	line, err := from.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return fmt.Errorf("hear %q: %w", want, errUnknown)
	}
	if err != nil {
		return fmt.Errorf("hear %q: %w", want, err)
	}
	if got := strings.TrimSuffix(string(line), "\n"); got != want {
		return fmt.Errorf("heard %q, want %q: %w", got, want, errUnknown)
	}
	return nil
}
