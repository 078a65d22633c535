package ca

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestBundleLives runs the scripts in testdata/bundles. Each line is a moment:
//
//	+2h want=b waiting=n1,n2 away=n2 used=a  ->  a:Signing b:Announced
//
// time passes, next is asked with what the line says, and the bundle must then be
// what follows the arrow.
func TestBundleLives(t *testing.T) {
	scripts, err := filepath.Glob("testdata/bundles/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txt"), func(t *testing.T) { playBundle(t, script) })
	}
}

func playBundle(t *testing.T, script string) {
	file, err := os.Open(script)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	now, b := start, bundle(nil)
	for scanner, number := bufio.NewScanner(file), 1; scanner.Scan(); number++ {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		said, want, found := strings.Cut(line, "->")
		if !found {
			t.Fatalf("line %d: no arrow", number)
		}
		s := situation{}
		var used []string
		for _, word := range strings.Fields(said) {
			key, value, _ := strings.Cut(word, "=")
			list := strings.Split(value, ",")
			switch key {
			case "want":
				s.desired = trusted{PEM: value, Fingerprint: value}
			case "waiting":
				s.waiting = list
			case "away":
				s.away = list
			case "used":
				used = list
			default:
				passed, err := time.ParseDuration(strings.TrimPrefix(key, "+"))
				if err != nil {
					t.Fatalf("line %d: %v", number, err)
				}
				now = now.Add(passed)
			}
		}
		s.now, s.used = now, func(root string, _ time.Time) bool { return slices.Contains(used, root) }
		before := slices.Clone(b)
		next := b.next(s)
		if !slices.Equal(before, b) {
			t.Fatalf("line %d: next changed its receiver", number)
		}
		b = next
		var got []string
		signers := 0
		for _, root := range b {
			got = append(got, fmt.Sprintf("%s:%s", root.Fingerprint, root.Phase))
			if root.Phase == signing {
				signers++
			}
		}
		if text := strings.Join(got, " "); text != strings.TrimSpace(want) {
			t.Errorf("line %d: %s\nbundle is %s", number, line, text)
		}
		if signers != 1 {
			t.Errorf("line %d: %d roots sign", number, signers)
		}
	}
}
