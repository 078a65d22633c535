package feed

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// written returns a small file of ours, and its bytes.
func written(t *testing.T) (path string, file []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "snapshot.pb")
	if err := writeFile(path, magicFull, named("cart", "web"), nil); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, file
}

func named(names ...string) changes {
	c := changes{upserts: noUpserts()}
	for _, name := range names {
		c.upserts[workload.AddressType][name] = &workload.Resource{Name: name, Version: "1", Body: &anypb.Any{Value: []byte(name)}}
	}
	return c
}

// handedOut counts what a reader of a file would have acted on.
func handedOut(file []byte) (messages int, err error) {
	err = decode(bytes.NewReader(file), magicFull, func([]byte) error { messages++; return nil })
	return messages, err
}

func TestEveryTruncationAndEveryFlippedByteIsRefused(t *testing.T) {
	_, file := written(t)
	if messages, err := handedOut(file); err != nil || messages == 0 {
		t.Fatalf("the whole file: %d messages, %v", messages, err)
	}
	for n := range file {
		if messages, err := handedOut(file[:n]); err == nil || messages > 0 {
			t.Errorf("the first %d bytes: %d messages, %v", n, messages, err)
		}
	}
	for at := range file {
		for bit := range 8 {
			flipped := bytes.Clone(file)
			flipped[at] ^= 1 << bit
			if messages, err := handedOut(flipped); err == nil || messages > 0 {
				t.Errorf("bit %d of byte %d flipped: %d messages, %v", bit, at, messages, err)
			}
		}
	}
}

func TestFilesThatAreNotOursAreNotRead(t *testing.T) {
	for name, do := range map[string]func(path string) error{
		"open to others":  func(path string) error { return os.Chmod(path, 0o604) },
		"another's":       func(path string) error { return os.Chown(path, 65534, 65534) },
		"a symbolic link": func(path string) error { return errors.Join(os.Rename(path, path+".1"), os.Symlink(path+".1", path)) },
		"a pipe":          func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
		"a folder":        func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o600)) },
		"huge":            func(path string) error { return os.Truncate(path, maxFileBytes+1) }, // sparse
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := written(t)
			if err := do(path); err != nil {
				t.Fatal(err)
			}
			if err := readFile(path, magicFull, func([]byte) error { t.Error("read"); return nil }); err == nil {
				t.Error("no error")
			}
		})
	}
}

// A disk that gets full in the middle of a save says nothing about the file
// that is there: it stays, and stays the base of the next one.
func TestAFullDiskIsNotALostFile(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "snapshot.pb")
	large := named("cart")
	large.upserts[workload.AddressType]["cart"].Body.Value = make([]byte, 48<<10)
	if err := writeFile(path, magicFull, large, nil); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk does not get full: %v", err)
	}
	// Room for the beginning of another file.
	stat, err := os.Stat(filler)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filler, stat.Size()-16<<10); err != nil {
		t.Fatal(err)
	}
	more := named("web")
	more.based = true
	if err := writeFile(path, magicFull, more, nil); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, errBase) {
		t.Errorf("on a full disk: %v, want that and nothing about what is there", err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		t.Errorf("the file that was there is another (%v)", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(path, magicFull, more, nil); err != nil {
		t.Fatal(err)
	}
	names := 0
	if err := readFile(path, magicFull, func(message []byte) error {
		names += bytes.Count(message, []byte("cart")) + bytes.Count(message, []byte("web"))
		return nil
	}); err != nil || names == 0 {
		t.Errorf("with room again: %d names, %v", names, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
