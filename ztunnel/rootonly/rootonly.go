// Package rootonly listens on unix sockets of the node whose other ends are root's processes.
//
// A socket's mode says the same, but only from a moment after it is there on, and may be changed: who the peer is, the kernel says.
package rootonly

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Listener accepts connections of root's processes.
type Listener struct {
	*net.UnixListener
	logger *slog.Logger
}

// Listen makes a socket at a path, in the place of one that is there: what a killed process left would refuse its name. The name
// stays when the Listener is closed, for it may be the next process's by then.
func Listen(path string, logger *slog.Logger) (*Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return &Listener{listener, logger}, nil
}

// Accept returns the next connection of root's.
func (l *Listener) Accept() (net.Conn, error) {
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
		l.logger.Warn("refused on a socket of root's", "socket", l.Addr().String(), "uid", uid, "error", err)
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
