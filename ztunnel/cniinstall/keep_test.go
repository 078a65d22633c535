package cniinstall

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// run runs the installer until the test ends, from when the entry is in place.
func (n *node) run() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	})
	select {
	case <-n.Installed():
	case <-time.After(5 * time.Second):
		n.t.Fatal("not installed")
	}
}

// isWhole tells whether a pod that started now would meet the gate.
func (n *node) isWhole(file, want string) bool {
	content, err := os.ReadFile(filepath.Join(n.conf, file))
	binary, binaryErr := os.ReadFile(n.binary())
	stat, statErr := os.Stat(n.binary())
	return err == nil && binaryErr == nil && statErr == nil && stat.Mode().Perm() == pluginMode && string(content) == want && string(binary) == "the plugin"
}

// restoredWithin waits for the gate, and says how long it took.
func (n *node) restoredWithin(bound time.Duration, file, want string) time.Duration {
	n.t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if n.isWhole(file, want) {
			return time.Since(began)
		}
		if time.Since(began) > bound {
			n.t.Fatalf("not restored within %s: problems %q, files %s", bound, n.Problems(), n.files())
		}
	}
}

// injuries are what others do to the gate of a running node.
var injuries = []struct {
	name string
	do   func(*node)
}{
	{"overwritten in place", func(n *node) { n.configure("10-net.conflist", chain) }},
	{"overwritten by rename", func(n *node) {
		n.configure(".new", chain)
		if err := os.Rename(filepath.Join(n.conf, ".new"), filepath.Join(n.conf, "10-net.conflist")); err != nil {
			n.t.Fatal(err)
		}
	}},
	{"removed", func(n *node) { n.remove(filepath.Join(n.conf, "10-net.conflist")) }},
	{"binary removed", func(n *node) { n.remove(n.binary()) }},
	{"binary replaced", func(n *node) { n.write(n.binary(), "otherwise!") }},
	{"binary no longer executable", func(n *node) {
		if err := os.Chmod(n.binary(), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}},
	{"binary overwritten with its old time", func(n *node) {
		stat, err := os.Stat(n.binary())
		if err != nil {
			n.t.Fatal(err)
		}
		n.write(n.binary(), "THE PLUGIN")
		if err := os.Chtimes(n.binary(), stat.ModTime(), stat.ModTime()); err != nil {
			n.t.Fatal(err)
		}
	}},
}

func (n *node) remove(path string) {
	n.t.Helper()
	if err := os.Remove(path); err != nil {
		n.t.Fatal(err)
	}
}

func TestWhatOthersUndoIsThereAgainWithinASecond(t *testing.T) {
	for name, watched := range map[string]bool{"watched": true, "no watch to be had": false} {
		t.Run(name, func(t *testing.T) {
			for _, c := range injuries {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					n := newNode(t)
					if !watched {
						n.follow = func(ctx context.Context, _ chan<- struct{}) { <-ctx.Done() }
					}
					n.configure("10-net.conflist", chain)
					n.run()
					c.do(n)
					t.Logf("after %s", n.restoredWithin(time.Second, "10-net.conflist", mustWith(t, chain, entry)))
				})
			}
		})
	}
}

// The watch is what makes it prompt: with polling alone it would take half a second.
func TestTheWatchNoticesAtOnce(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.run()
	time.Sleep(50 * time.Millisecond) // the watch stands
	n.configure("10-net.conflist", chain)
	if took := n.restoredWithin(time.Second, "10-net.conflist", mustWith(t, chain, entry)); took > pollInterval/2 {
		t.Errorf("it took %s", took)
	}
}

// TestTwoWritersDoNotSpin has another restore its own version as soon as ours
// is there.
func TestTwoWritersDoNotSpin(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.run()
	want := mustWith(t, chain, entry)
	stop := make(chan struct{})
	var group sync.WaitGroup
	var fights int
	var longest time.Duration
	group.Go(func() {
		for last := time.Now(); ; time.Sleep(time.Millisecond) {
			select {
			case <-stop:
				return
			default:
			}
			if content, err := os.ReadFile(filepath.Join(n.conf, "10-net.conflist")); err == nil && string(content) == want {
				longest = max(longest, time.Since(last))
				fights++
				n.configure("10-net.conflist", chain)
				last = time.Now()
			}
		}
	})
	time.Sleep(3 * time.Second)
	problems := n.Problems()
	close(stop)
	group.Wait()
	if len(problems) != 1 || !strings.HasPrefix(problems[0], "CNIConfigContested: ") || !strings.Contains(problems[0], "10-net.conflist") {
		t.Errorf("problems %q", problems)
	}
	if fights < contestFree || fights > 20 {
		t.Errorf("%d rewrites in 3 s", fights)
	}
	if longest > time.Second {
		t.Errorf("the entry was missing for %s", longest)
	}
	n.restoredWithin(time.Second, "10-net.conflist", want)
}

func TestContest(t *testing.T) {
	var c contest
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	restorations := 0
	for end := now.Add(time.Minute); now.Before(end); {
		wait := c.wait(now)
		if wait > contestLast {
			t.Fatalf("it waits %s", wait)
		}
		now = now.Add(wait + time.Millisecond) // the other is quick
		c.note(now)
		restorations++
	}
	if restorations > 150 {
		t.Errorf("%d restorations a minute", restorations)
	}
	if _, yes := c.contested(now); !yes {
		t.Error("not contested in the middle of it")
	}
	now = now.Add(contestWindow)
	if _, yes := c.contested(now); yes || c.wait(now) != 0 {
		t.Error("still contested long after")
	}
}

func TestAVanishedConfigurationGoesWhenItsOwnerWritesAnother(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		n := newNode(t)
		n.configure("10-net.conflist", chain)
		n.once()
		n.remove(filepath.Join(n.conf, "10-net.conflist"))
		n.once()
		if got := n.files(); got != "" {
			t.Fatalf("put back at once, before its owner could write another: %s", got)
		}
		n.once()
		if got := n.files(); got != "10-net.conflist 10-net.conflist"+restoredSuffix {
			t.Fatalf("files %s, problems %q", got, n.Problems())
		}
		if restarted {
			n.Installer = New(n.config)
			n.once()
		}
		n.configure("20-other.conflist", chain)
		n.once()
		if got := n.files(); got != "20-other.conflist" {
			t.Errorf("restarted %v: files %s", restarted, got)
		}
		if n.read("20-other.conflist") != mustWith(t, chain, entry) {
			t.Error("the other is without the gate")
		}
	}
}

func TestAVanishedConfigurationThatItsOwnerWritesAgainIsHis(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.once()
	n.remove(filepath.Join(n.conf, "10-net.conflist"))
	n.once()
	n.once()
	rewritten := strings.Replace(chain, "1400.0", "1500", 1)
	n.configure("10-net.conflist", rewritten)
	n.once()
	n.configure("20-other.conflist", chain)
	n.once()
	if got := n.files(); got != "10-net.conflist 20-other.conflist" {
		t.Errorf("files %s", got)
	}
	if n.read("10-net.conflist") != mustWith(t, rewritten, entry) {
		t.Error("the owner's is without the gate")
	}
}

func TestNothingIsPutBackThatWasNeverInPlace(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain[:40])
	n.once()
	n.remove(filepath.Join(n.conf, "10-net.conflist"))
	for range 3 {
		n.once()
	}
	if got := n.files(); got != "" {
		t.Errorf("files %s", got)
	}
}

func TestRemovalTakesTheMarkAlong(t *testing.T) {
	n := newNode(t)
	n.configure("10-net.conflist", chain)
	n.once()
	n.remove(filepath.Join(n.conf, "10-net.conflist"))
	n.once()
	n.once()
	if _, err := RemoveEntries(n.conf); err != nil {
		t.Fatal(err)
	}
	if got := n.files(); got != "10-net.conflist" || n.read("10-net.conflist") != chain {
		t.Errorf("files %s:\n%s", got, n.read("10-net.conflist"))
	}
}

func TestAFolderThatWasReplacedIsToldApartFromAnEmptyOne(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "net.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// As through a mount of the folder: its name is gone, it is still there.
	open, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	n.Installer = New(Config{
		Plugin: filepath.Join(n.image, "plugin"), BinDir: n.bin, ConfDir: filepath.Join("/proc/self/fd", fmt.Sprint(open.Fd())), Entry: entry, Logger: slog.New(slog.DiscardHandler),
	})
	n.once()
	if p := n.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "CNIFolderReplaced: ") {
		t.Errorf("problems %q", p)
	}
}
