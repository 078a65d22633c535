package conns

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
)

// causes are the errors with which a network fails connect(2), by the names that they have on the way between two nodes.
var causes = map[string]syscall.Errno{
	"ECONNREFUSED": syscall.ECONNREFUSED,
	"EHOSTUNREACH": syscall.EHOSTUNREACH,
	"ENETUNREACH":  syscall.ENETUNREACH,
	"EACCES":       syscall.EACCES,
	"ETIMEDOUT":    syscall.ETIMEDOUT,
}

// CauseOf is with what connect(2) would have failed for err, without a mesh in between: one of the errors that a network
// causes, or 0 if err is of another kind. To have waited in vain is ETIMEDOUT, whoever lost his patience.
func CauseOf(err error) syscall.Errno {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return syscall.ETIMEDOUT
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		for _, cause := range causes {
			if errno == cause {
				return cause
			}
		}
	}
	return 0
}

// Words are what the far end of a tunnel is told of a refusal: the reason, and the name of the cause if there is one.
func Words(reason Reason, err error) string {
	cause := CauseOf(err)
	for name, errno := range causes {
		if errno == cause {
			return string(reason) + " " + name
		}
	}
	return string(reason)
}

// CauseIn finds the cause in the words of a refusal: 0 if they, perhaps another implementation's, name none.
func CauseIn(words string) syscall.Errno {
	_, name, _ := strings.Cut(words, " ")
	return causes[name]
}
