// Package term prints what a command does: one line a step, with its mark and
// the time it took, and one line a finding.
//
// Colours are used on terminals only, and never where NO_COLOR is set; the
// marks alone carry the meaning.
package term

import (
	"fmt"
	"io"
	"os"
	"time"
)

// Mark says how something went.
type Mark int

const (
	OK Mark = iota
	Warning
	Failure
)

var signs = map[Mark]struct{ sign, colour string }{
	OK:      {"√", "\x1b[32m"},
	Warning: {"‼", "\x1b[33m"},
	Failure: {"×", "\x1b[31m"},
}

// Terminal is where a command prints.
type Terminal struct {
	w       io.Writer
	colours bool
}

// New prints to a file, with colours where it is a terminal.
func New(w *os.File) *Terminal {
	return &Terminal{w: w, colours: interactive(w) && os.Getenv("NO_COLOR") == ""}
}

// Plain prints to any writer, without colours.
func Plain(w io.Writer) *Terminal {
	return &Terminal{w: w}
}

func interactive(w *os.File) bool {
	info, err := w.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Line prints a marked line.
func (t *Terminal) Line(mark Mark, format string, args ...any) {
	s := signs[mark]
	text := fmt.Sprintf(format, args...)
	if t.colours {
		fmt.Fprintf(t.w, "%s%s\x1b[0m %s\n", s.colour, s.sign, text)
		return
	}
	fmt.Fprintf(t.w, "%s %s\n", s.sign, text)
}

// Note prints a line below the one before.
func (t *Terminal) Note(format string, args ...any) {
	fmt.Fprintf(t.w, "    %s\n", fmt.Sprintf(format, args...))
}

// Text prints as it is.
func (t *Terminal) Text(format string, args ...any) {
	fmt.Fprintf(t.w, format+"\n", args...)
}

// Step runs one step of a command and prints how it went. What the step tells
// meanwhile is printed as notes.
func (t *Terminal) Step(title string, run func(tell func(string)) error) error {
	start := time.Now()
	t.Text("  %s", title)
	err := run(func(text string) { t.Note("%s", text) })
	took := time.Since(start).Round(100 * time.Millisecond)
	if err != nil {
		t.Line(Failure, "%s (%s): %v", title, took, err)
		return err
	}
	t.Line(OK, "%s (%s)", title, took)
	return nil
}
