package statefile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var kind = Kind{Name: "pods", Version: 3, MaxBytes: 1 << 10}

const content = `{"pods":[{"uid":"a"}]}` + "\n"

func written(t *testing.T) (path string, file []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "pods.json")
	if err := kind.Write(path, []byte(content)); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, file
}

func TestReadsWhatWasWritten(t *testing.T) {
	path, file := written(t)
	got, err := kind.Read(path)
	if err != nil || string(got) != content {
		t.Errorf("%q, %v", got, err)
	}
	if !strings.HasPrefix(string(file), "ambit pods 3 sha256:") || !strings.HasSuffix(string(file), content) {
		t.Errorf("the file:\n%s", file)
	}
	if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", stat, err)
	}
	if _, err := kind.Read(path + ".absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func TestEveryTruncationAndEveryFlippedBitIsRefused(t *testing.T) {
	_, file := written(t)
	for n := range file {
		if got, err := kind.Decode(file[:n]); err == nil {
			t.Errorf("the first %d bytes were read as %q", n, got)
		}
	}
	for at := range file {
		for bit := range 8 {
			flipped := bytes.Clone(file)
			flipped[at] ^= 1 << bit
			if got, err := kind.Decode(flipped); err == nil {
				t.Errorf("bit %d of byte %d flipped: read as %q", bit, at, got)
			}
		}
	}
	for name, other := range map[string][]byte{
		"longer": append(bytes.Clone(file), '\n'), "twice": append(bytes.Clone(file), file...),
		"an older version": Kind{Name: "pods", Version: 2}.Encode([]byte(content)),
		"another kind":     Kind{Name: "cods", Version: 3}.Encode([]byte(content)),
		"bare JSON":        []byte(content), "zeroes": make([]byte, len(file)),
	} {
		if got, err := kind.Decode(other); err == nil {
			t.Errorf("%s: read as %q", name, got)
		}
	}
}

func TestFilesThatAreNotOursAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(path string) error
		want string
	}{
		"open to others":  {func(path string) error { return os.Chmod(path, 0o644) }, "mode"},
		"another owner":   {func(path string) error { return os.Chown(path, 65534, 65534) }, "belongs to user 65534"},
		"empty":           {func(path string) error { return os.Truncate(path, 0) }, "begins with"},
		"huge":            {func(path string) error { return os.Truncate(path, 1<<40) }, "longer"}, // sparse
		"a folder":        {func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o600)) }, "regular"},
		"a pipe":          {func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) }, "regular"},
		"a symbolic link": {func(path string) error { return errors.Join(os.Rename(path, path+".1"), os.Symlink(path+".1", path)) }, "symbolic"},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := written(t)
			if err := c.do(path); err != nil {
				t.Fatal(err)
			}
			got, err := kind.Read(path)
			if _, damaged := errors.AsType[*Damaged](err); !damaged || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// A file system of a few pages, filled up, is a full disk.
func TestAFullDiskKeepsTheOldFileWhole(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "pods.json")
	if err := kind.Write(path, []byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk does not get full: %v", err)
	}
	if err := kind.Write(path, []byte(content+content)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("written to a full disk: %v", err)
	}
	if got, err := kind.Read(path); err != nil || string(got) != content {
		t.Errorf("the old file: %q, %v", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	if err := kind.Write(path, []byte(content+content)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
