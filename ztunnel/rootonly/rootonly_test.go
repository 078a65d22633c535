package rootonly_test

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/rootonly"
	"github.com/ambit-mesh/ambit/ztunnel/rootonly/rootonlytest"
)

// Another user who gets as far as connecting is not served; and how far he gets, the mode says as well.
func TestSocketsAreForRoot(t *testing.T) {
	path := filepath.Join(rootonlytest.Dir(t), "s")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // as if a killed process had left it
		t.Fatal(err)
	}
	l, err := rootonly.Listen(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	rootonlytest.ServesRoot(t, path, "")
}
