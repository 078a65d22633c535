package conns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
)

// What connect(2) failed with on one node, the other can read.
func TestCauseCrossesTheTunnel(t *testing.T) {
	refused := Fail(ConnectFailed, fmt.Errorf("connect: %w", os.NewSyscallError("connect", syscall.ECONNREFUSED)))
	for _, c := range []struct {
		err   error
		words string
		cause syscall.Errno
	}{
		{refused, "ConnectFailed ECONNREFUSED", syscall.ECONNREFUSED},
		{os.NewSyscallError("connect", syscall.EHOSTUNREACH), "ConnectFailed EHOSTUNREACH", syscall.EHOSTUNREACH},
		{os.NewSyscallError("connect", syscall.ENETUNREACH), "ConnectFailed ENETUNREACH", syscall.ENETUNREACH},
		{os.NewSyscallError("connect", syscall.EACCES), "ConnectFailed EACCES", syscall.EACCES},
		{os.NewSyscallError("connect", syscall.ETIMEDOUT), "ConnectFailed ETIMEDOUT", syscall.ETIMEDOUT},
		{context.DeadlineExceeded, "ConnectFailed ETIMEDOUT", syscall.ETIMEDOUT},
		{os.NewSyscallError("bind", syscall.EADDRINUSE), "ConnectFailed", 0},
		{errors.New("denied"), "ConnectFailed", 0},
	} {
		if words := Words(ConnectFailed, c.err); words != c.words {
			t.Errorf("%v: %q, want %q", c.err, words, c.words)
		}
		if cause := CauseIn(c.words); cause != c.cause {
			t.Errorf("%q: %v, want %v", c.words, cause, c.cause)
		}
	}
	for _, words := range []string{"", "ECONNREFUSED", "ConnectFailed EPERM", "no healthy upstream", "ConnectFailed  ETIMEDOUT"} {
		if cause := CauseIn(words); cause != 0 {
			t.Errorf("%q names %v", words, cause)
		}
	}
}
