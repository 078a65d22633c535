// Package rootonlytest connects to unix sockets as root and as other users do.
package rootonlytest

import (
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nobody is a user without rights.
const nobody = 65534

// ServesRoot fails t unless who listens at path answers root, and nobody else who gets as far as connecting. What they
// say first is hello.
func ServesRoot(t *testing.T, path, hello string) {
	t.Helper()
	for user, want := range map[int]bool{nobody: false, 0: true} {
		conn := Dial(t, path, user)
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(conn, hello)
		if n, _ := conn.Read(make([]byte, 1)); (n > 0) != want {
			t.Errorf("user %d is answered: %v, want %v", user, n > 0, want)
		}
	}
}

// Dial connects as a user to a socket whose mode, and whose folder's, do not hold him up from here on.
func Dial(t *testing.T, path string, uid int) net.Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	connected := make(chan net.Conn)
	go func() {
		// The thread has another user's rights from here on, and ends with the goroutine.
		runtime.LockOSThread()
		conn, err := dial(path, uid)
		if err != nil {
			t.Errorf("connect as user %d: %v", uid, err)
		}
		connected <- conn
	}()
	conn := <-connected
	if conn == nil {
		t.FailNow()
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func dial(path string, uid int) (net.Conn, error) {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return nil, os.NewSyscallError("setresuid", errno)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(file)
}

// Dir makes a folder that everybody may search.
func Dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
