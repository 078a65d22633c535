package succession

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/rootonly/rootonlytest"
)

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(5 * time.Second):
		t.Fatalf("not in 5 s: %s", what)
	}
}

func notYet(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
		t.Fatalf("too early: %s", what)
	case <-time.After(50 * time.Millisecond):
	}
}

// wait starts a process's side, and returns what ends the process.
func wait(t *testing.T, path string) (*Heir, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	heir, ended := New(path, slog.New(slog.DiscardHandler)), make(chan error, 1)
	go func() { ended <- heir.Wait(ctx) }()
	end := func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(end)
	for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			return heir, end
		}
	}
	t.Fatal("nobody listens")
	return nil, nil
}

func find(t *testing.T, path string) *Predecessor {
	t.Helper()
	p, err := Find(path)
	if err != nil || p == nil {
		t.Fatalf("found %v, %v", p, err)
	}
	return p
}

func TestOneTakesOverFromAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	heir, end := wait(t, path)
	next := find(t, path)
	notYet(t, "asked", heir.Asked())
	took := make(chan error, 1)
	go func() { took <- next.TakeOver(t.Context()) }()
	await(t, "asked", heir.Asked())
	select {
	case err := <-took:
		t.Fatalf("took over before it was ceded: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	heir.Cede()
	if err := <-took; err != nil {
		t.Fatal(err)
	}
	// The next waits for its own, by the same name, while the first lives.
	after, _ := wait(t, path)
	notYet(t, "captured", heir.Captured())
	next.Captured()
	await(t, "captured", heir.Captured())
	notYet(t, "lost", heir.Lost())
	notYet(t, "gone", next.Gone())
	end()
	await(t, "gone", next.Gone())
	notYet(t, "asked by nobody", after.Asked())
}

func TestEitherMayEnd(t *testing.T) {
	for name, captures := range map[string]bool{"before it captured": false, "after": true} {
		t.Run("the next "+name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			heir, _ := wait(t, path)
			next := find(t, path)
			go next.TakeOver(t.Context())
			await(t, "asked", heir.Asked())
			heir.Cede()
			if captures {
				next.Captured()
				await(t, "captured", heir.Captured())
			}
			notYet(t, "lost", heir.Lost())
			next.conn.Close()
			await(t, "lost", heir.Lost())
		})
	}
	t.Run("the next before it asks", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		heir, _ := wait(t, path)
		find(t, path).conn.Close()
		notYet(t, "asked", heir.Asked())
		notYet(t, "lost", heir.Lost())
		go find(t, path).TakeOver(t.Context()) // another may come
		await(t, "asked", heir.Asked())
	})
	t.Run("the first while it is asked", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		heir, end := wait(t, path)
		next := find(t, path)
		took := make(chan error, 1)
		go func() { took <- next.TakeOver(t.Context()) }()
		await(t, "asked", heir.Asked())
		end()
		if err := <-took; err != nil {
			t.Errorf("from one that has ended: %v", err)
		}
		await(t, "gone", next.Gone())
	})
}

func TestNobodyBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if p, err := Find(path); p != nil || err != nil {
		t.Errorf("found %v, %v", p, err)
	}
	_, end := wait(t, path)
	end() // its socket stays, as after kill -9
	if p, err := Find(path); p != nil || err != nil {
		t.Errorf("found %v, %v, of a process that has ended", p, err)
	}
}

// Whoever is not root is not heard, though he gets as far as connecting.
func TestAnotherUserGetsNoNode(t *testing.T) {
	path := filepath.Join(rootonlytest.Dir(t), "s")
	heir, _ := wait(t, path)
	other := rootonlytest.Dial(t, path, 65534)
	other.Write([]byte(takeOver + "\n"))
	notYet(t, "asked by another user", heir.Asked())
	rootonlytest.Dial(t, path, 0).Write([]byte(takeOver + "\n"))
	await(t, "asked", heir.Asked())
}

func TestASecondIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	heir, _ := wait(t, path)
	go find(t, path).TakeOver(t.Context())
	await(t, "asked", heir.Asked())
	await(t, "the second's end", func() <-chan struct{} {
		second := find(t, path)
		go second.TakeOver(t.Context())
		return second.Gone()
	}())
}

func TestOneThatSpeaksOtherwise(t *testing.T) {
	for _, says := range []string{"no\n", strings.Repeat("x", 2*maxLine)} {
		mine, theirs := net.Pipe()
		defer theirs.Close()
		p := &Predecessor{conn: mine, from: bufio.NewReaderSize(mine, maxLine), gone: make(chan struct{}), said: make(chan error, 1)}
		go p.watch()
		go func() {
			theirs.Read(make([]byte, maxLine))
			theirs.Write([]byte(says))
		}()
		if err := p.TakeOver(t.Context()); err == nil {
			t.Errorf("took over from one that says %.10q", says)
		}
	}
}

// One that neither answers nor ends is not waited for for ever.
func TestOneThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, theirs := net.Pipe()
		defer theirs.Close()
		p := &Predecessor{conn: mine, gone: make(chan struct{}), said: make(chan error, 1)}
		go theirs.Read(make([]byte, maxLine))
		if err := p.TakeOver(t.Context()); err == nil {
			t.Error("took over from one that hangs")
		}
	})
}
