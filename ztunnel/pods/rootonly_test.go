package pods

import (
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCNISocketIsForRoot: another user who gets as far as connecting is not served.
func TestCNISocketIsForRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "cni")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "cni.sock")
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{dir: 0o755, path: 0o666} { // as if nothing else held him up
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	l := rootOnly{inner, slog.New(slog.DiscardHandler)}
	defer l.Close()
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	served := func(uid uintptr) bool {
		answer := make(chan bool)
		go func() {
			// The thread has another user's rights from here on, and ends with the goroutine.
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uid, ^uintptr(0)); errno != 0 {
				t.Errorf("become user %d: %v", uid, errno)
			}
			answer <- func() bool {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return false
				}
				defer unix.Close(fd)
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64((5 * time.Second).Seconds())})
				if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
					t.Errorf("connect as user %d: %v", uid, err)
					return false
				}
				n, _ := unix.Read(fd, make([]byte, 10))
				return n > 0
			}()
		}()
		return <-answer
	}
	if served(65534) {
		t.Error("another user was served")
	}
	if !served(0) {
		t.Error("root was not served")
	}
}
