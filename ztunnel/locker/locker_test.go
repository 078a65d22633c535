package locker

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

const name = "spiffe://cluster.local/ns/shop/sa/web"

var secret = []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")

// inMemory returns a folder on a file system of its own that is in memory, of so
// many KiB.
func inMemory(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newLocker(dir string) *Locker { return New(dir, slog.New(slog.DiscardHandler)) }

func TestTheNextProcessFindsWhatWasSaved(t *testing.T) {
	dir := filepath.Join(inMemory(t, "1m"), "certs")
	l := newLocker(dir)
	if got := l.Load(name); got != nil {
		t.Errorf("found %q in a folder that is not there", got)
	}
	l.Save(name, secret)
	if p := l.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	if got := newLocker(dir).Load(name); !bytes.Equal(got, secret) {
		t.Errorf("the next process found %q", got)
	}
	if stat, err := os.Stat(dir); err != nil || stat.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", stat, err)
	}
	for _, path := range files(t, dir) {
		if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o600 {
			t.Errorf("file: %v, %v", stat, err)
		}
	}
	l.Remove(name)
	if left := files(t, dir); len(left) > 0 || newLocker(dir).Load(name) != nil {
		t.Errorf("removed, and left: %q", left)
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestNoKeyGoesToADisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	var stat unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(dir), &stat); err != nil {
		t.Fatal(err)
	}
	l := newLocker(dir)
	if uint32(stat.Type) == unix.TMPFS_MAGIC {
		// The tests' own folder is in memory on this machine: call it something else.
		l.inMemory = func(*os.File) (string, bool, error) { return "a file system of type 0xef53", false, nil }
	}
	l.Save(name, secret)
	p := l.Problems()
	if len(p) != 1 || !strings.HasPrefix(p[0], "KeysNotInMemory: ") || !strings.Contains(p[0], dir) {
		t.Errorf("problems %q", p)
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("written: %q", left)
	}
	// What somebody has put there is not ours to trust.
	if err := os.WriteFile(filepath.Join(dir, fileOf(name)), kind.Encode(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := l.Load(name); got != nil {
		t.Errorf("read from a disk: %q", got)
	}
}

func TestADamagedSecretIsRemovedNotUsed(t *testing.T) {
	dir := filepath.Join(inMemory(t, "8m"), "certs")
	l := newLocker(dir)
	l.Save(name, secret)
	path := files(t, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, at int) {
		t.Helper()
		if got := l.Load(name); got != nil {
			t.Errorf("%s at %d: used %q", what, at, got)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s at %d: the file stayed (%v)", what, at, err)
		}
	}
	for n := range whole {
		put(whole[:n])
		refused("truncated", n)
	}
	for n := range whole {
		flipped := bytes.Clone(whole)
		flipped[n] ^= 0x20
		put(flipped)
		refused("flipped", n)
	}
	put(append(bytes.Clone(whole), make([]byte, 1<<20)...))
	refused("huge", 0)
	put(whole)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	refused("open to others", 0)
	put(whole)
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	refused("another's", 0)
	if err := os.Symlink("/etc/hostname", path); err != nil {
		t.Fatal(err)
	}
	refused("a link", 0)
}

func TestAFolderThatIsNotOursAloneIsNotUsed(t *testing.T) {
	for what, c := range map[string]struct {
		prepare func(dir string) error
		used    bool
	}{
		"open to others is closed": {func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) }, true},
		"another's":                {func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534)) }, false},
		"a link":                   {func(dir string) error { return errors.Join(os.Mkdir(dir+".1", 0o700), os.Symlink(dir+".1", dir)) }, false},
		"a file":                   {func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, false},
	} {
		t.Run(what, func(t *testing.T) {
			dir := filepath.Join(inMemory(t, "1m"), "certs")
			if err := c.prepare(dir); err != nil {
				t.Fatal(err)
			}
			l := newLocker(dir)
			l.Save(name, secret)
			if got := l.Load(name) != nil; got != c.used || (len(l.Problems()) == 0) != c.used {
				t.Errorf("used %v, problems %q", got, l.Problems())
			}
			if stat, err := os.Stat(dir); c.used && (err != nil || stat.Mode().Perm() != 0o700) {
				t.Errorf("folder %v, %v", stat, err)
			}
		})
	}
}

func TestAFullFolderIsReportedAndTriedAgain(t *testing.T) {
	mount := inMemory(t, "64k")
	dir := filepath.Join(mount, "certs")
	synctest.Test(t, func(t *testing.T) {
		l := newLocker(dir)
		go func() { _ = l.Run(t.Context()) }()
		l.Save(name, secret)
		filler := filepath.Join(mount, "filler")
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the folder does not get full: %v", err)
		}
		l.Save(name, append(bytes.Clone(secret), make([]byte, 20<<10)...))
		l.Save("another", secret)
		if p := l.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "KeysNotKept: ") {
			t.Errorf("problems %q", p)
		}
		if got := l.Load(name); !bytes.Equal(got, secret) {
			t.Errorf("the old secret is not whole any more: %d bytes", len(got))
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		time.Sleep(retryInterval + time.Millisecond)
		synctest.Wait()
		if p := l.Problems(); len(p) > 0 {
			t.Errorf("with room again: %q", p)
		}
		if len(l.Load(name)) <= len(secret) || l.Load("another") == nil {
			t.Error("what could not be saved was not saved later")
		}
	})
}

func TestRetainRemovesAllOthers(t *testing.T) {
	dir := filepath.Join(inMemory(t, "1m"), "certs")
	l := newLocker(dir)
	for _, each := range []string{name, "gone", "torn"} {
		l.Save(each, secret)
	}
	if err := os.Rename(filepath.Join(dir, fileOf("torn")), filepath.Join(dir, fileOf("torn")+newSuffix)); err != nil {
		t.Fatal(err)
	}
	l.Retain([]string{name})
	if left := files(t, dir); !slices.Equal(left, []string{filepath.Join(dir, fileOf(name))}) {
		t.Errorf("left %q", left)
	}
}
