package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// writes counts them.
type writes struct {
	bytes.Buffer
	n   int
	err error
}

func (w *writes) Write(p []byte) (int, error) {
	w.n++
	w.Buffer.Write(p)
	return len(p), w.err
}

func TestLinesAreWrittenTogetherAndSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &writes{}
		l := NewLines(w)
		for i := range 10 {
			fmt.Fprintf(l, "line %d\n", i)
		}
		if w.n != 0 {
			t.Errorf("%d writes at once", w.n)
		}
		time.Sleep(lineDelay + time.Millisecond)
		synctest.Wait()
		if got := strings.Count(w.String(), "\n"); w.n != 1 || got != 10 {
			t.Errorf("%d lines in %d writes after %s, want 10 in one", got, w.n, lineDelay)
		}
		fmt.Fprintln(l, "the last")
		if err := l.Flush(); err != nil || !strings.HasSuffix(w.String(), "the last\n") {
			t.Errorf("flush: %v, %q", err, w.String())
		}
	})
}

func TestManyLinesDoNotWait(t *testing.T) {
	w := &writes{}
	l := NewLines(w)
	line := []byte(strings.Repeat("x", 99) + "\n")
	const n = 10 * linesAtOnce / 100
	for range n {
		l.Write(line)
	}
	if w.n < 9 || w.n > 11 {
		t.Errorf("%d writes", w.n)
	}
	if err := l.Flush(); err != nil || w.Len() != n*len(line) {
		t.Errorf("%d bytes of %d arrived, %v", w.Len(), n*len(line), err)
	}
}

func TestLinesThatCannotBeWrittenAreAnError(t *testing.T) {
	l := NewLines(&writes{err: errors.New("disk full")})
	fmt.Fprintln(l, "x")
	if err := l.Flush(); err == nil {
		t.Error("no error")
	}
}
