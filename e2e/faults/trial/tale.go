package trial

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/e2e/faults/orders"
	"github.com/ambit-mesh/ambit/e2e/faults/result"
)

// name is a pod of the trial.
type name struct{ namespace, pod string }

// pair is a pod and one whom it asks.
type pair struct {
	from   name
	target string
}

// span is a time.
type span struct{ from, to time.Time }

func (s span) has(t time.Time) bool { return !t.Before(s.from) && !t.After(s.to) }

// tales are what all pods told so far.
type tales struct {
	mu    sync.Mutex
	files map[string]*tale // by path
	told  map[name][]orders.Attempt
}

// tale is one pod's file, read up to an offset.
type tale struct {
	name   name
	offset int64
}

func newTales() *tales { return &tales{files: map[string]*tale{}, told: map[name][]orders.Attempt{}} }

// follow has a pod's tale read from now on.
func (t *tales) follow(path string, who name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files[path] == nil {
		t.files[path] = &tale{name: who}
	}
}

// readLocked reads what is new. A file that is not there yet has nothing.
func (t *tales) readLocked() {
	for path, f := range t.files {
		file, err := os.Open(path)
		if err != nil {
			continue
		}
		rest, _ := io.ReadAll(io.NewSectionReader(file, f.offset, 1<<40))
		file.Close()
		whole := rest[:bytes.LastIndexByte(rest, '\n')+1]
		f.offset += int64(len(whole))
		t.told[f.name] = append(t.told[f.name], attempts(whole)...)
	}
}

// attempts reads lines. One that a power cut left torn is none.
func attempts(lines []byte) (all []orders.Attempt) {
	for scanner := bufio.NewScanner(bytes.NewReader(lines)); scanner.Scan(); {
		var a orders.Attempt
		if json.Unmarshal(scanner.Bytes(), &a) == nil {
			all = append(all, a)
		}
	}
	return all
}

// forget drops what was told before a time: it has been counted.
func (t *tales) forget(before time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for who, all := range t.told {
		t.told[who] = slices.DeleteFunc(all, func(a orders.Attempt) bool { return a.Ended.Before(before) })
	}
}

// last are the latest new connections of a pair, the newest first, that began
// not before since.
func (t *tales) lastLocked(p pair, since time.Time) (last []orders.Attempt) {
	for _, a := range slices.Backward(t.told[p.from]) {
		if a.Kind == orders.New && a.Target == p.target {
			if a.Began.Before(since) {
				break
			}
			last = append(last, a)
		}
	}
	return last
}

// missing are those pairs whose last connections were not all answered.
func (t *tales) missing(pairs []pair, since time.Time) (missing []pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.readLocked()
	for _, p := range pairs {
		last := t.lastLocked(p, since)
		answered := len(last) >= streak
		for _, a := range last[:min(streak, len(last))] {
			answered = answered && a.Failed == ""
		}
		if !answered {
			missing = append(missing, p)
		}
	}
	return missing
}

// recovered is how long after since the last of the pairs was answered, for good.
func (t *tales) recovered(pairs []pair, since time.Time) (took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range pairs {
		var first orders.Attempt // of those that were answered in a row
		failed := false
		for _, a := range t.lastLocked(p, since) {
			if a.Failed != "" {
				failed = true
				break
			}
			first = a
		}
		// Who asked for the first time was not there before.
		if failed || t.newLocked(p, since) {
			took = max(took, first.Ended.Sub(since))
		}
	}
	return took
}

// newLocked tells whether a pair asked for the first time after since.
func (t *tales) newLocked(p pair, since time.Time) bool {
	for _, a := range t.told[p.from] {
		if a.Target == p.target && a.Kind == orders.New {
			return !a.Began.Before(since)
		}
	}
	return true
}

// unanswered tells of each pair how its last connection failed.
func (t *tales) unanswered(pairs []pair) (told []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range pairs {
		last := "never asked"
		if all := t.lastLocked(p, time.Time{}); len(all) > 0 {
			last = all[0].Failed
		}
		if last != "" {
			told = append(told, fmt.Sprintf("%s/%s to %s: %s", p.from.namespace, p.from.pod, p.target, last))
		}
	}
	return told
}

// connection is one that is kept.
type connection struct {
	pair
	id int64
}

// kept are the connections that stand now.
func (t *tales) kept() map[connection]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.readLocked()
	stand := map[connection]bool{}
	for who := range t.told {
		for c, a := range t.lastKeptLocked(who) {
			// What was told long ago is of one that was given up.
			if a.Failed == "" && time.Since(a.Ended) < 2*time.Second {
				stand[c] = true
			}
		}
	}
	return stand
}

// lastKeptLocked is the last that was told of each connection.
func (t *tales) lastKeptLocked(who name) map[connection]orders.Attempt {
	last := map[connection]orders.Attempt{}
	for _, a := range t.told[who] {
		if a.Kind == orders.Kept {
			last[connection{pair{who, a.Target}, a.Conn}] = a
		}
	}
	return last
}

// Stranger begins the names of targets in another namespace.
const stranger = "stranger:"

// count fills in what pods told of a mode.
func (t *tales) count(row *result.Row, mine map[name]bool, before map[connection]bool, window span) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.readLocked()
	for who, told := range t.told {
		for _, a := range told {
			if !window.has(a.Began) || a.Kind == orders.Kept {
				continue
			}
			if target, ok := strings.CutPrefix(a.Target, stranger+row.Mode+":"); ok && target != "" {
				row.StrangersAttempted++
				if a.Failed == "" {
					row.StrangersAnswered++
				}
				continue
			}
			if !mine[who] {
				continue
			}
			row.Attempted++
			if a.Kind == orders.New && a.Failed != "" {
				row.Refused++
			}
		}
	}
	for c := range before {
		if !mine[c.from] {
			continue
		}
		row.Kept++
		if last := t.lastKeptLocked(c.from)[c]; last.Failed == "" && last.Ended.After(window.to) {
			row.Survived++
		}
	}
}
