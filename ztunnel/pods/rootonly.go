package pods

import (
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/sys/unix"
)

// rootOnly accepts connections of root's processes. The socket's mode says the
// same, but only from a moment after it is there on.
type rootOnly struct {
	*net.UnixListener
	logger *slog.Logger
}

// Accept returns the next connection of root's.
func (l rootOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(conn)
		if err == nil && uid == 0 {
			return conn, nil
		}
		conn.Close()
		l.logger.Warn("refused on the CNI socket", "uid", uid, "error", err)
	}
}

func peerUID(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		credentials, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return 0, fmt.Errorf("who is the peer: %w", err)
	}
	return credentials.Uid, nil
}
