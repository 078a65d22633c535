package atomicfile

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestReadersNeverSeeAHalf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	contents := [][]byte{make([]byte, 100_000), []byte("short")}
	if err := Write(path, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	stop := make(chan struct{})
	group.Go(func() {
		for {
			got, err := os.ReadFile(path)
			if err != nil || (len(got) != len(contents[0]) && string(got) != "short") {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for i := range 100 {
		if err := Write(path, contents[i%2], 0o640); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	group.Wait()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o640 {
		t.Errorf("mode: %v, %v", stat, err)
	}
}

func TestNothingIsLeftOfAFailure(t *testing.T) {
	dir := t.TempDir()
	// A folder cannot be replaced by a file.
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "taken"), []byte("x"), 0o600); err == nil {
		t.Error("replaced a folder")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestSweepTakesWhatAKilledWriterLeft(t *testing.T) {
	dir := t.TempDir()
	staged, err := Stage(filepath.Join(dir, "file"), []byte("x"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", ".hidden", "a.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(staged.temporary); err == nil {
		t.Error("it is still there")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("left %v, %v", entries, err)
	}
}
