package workload

import (
	"slices"
	"strings"
)

// index finds values by something that several of them may share: workloads by
// address, workloads by service. Its lists are sorted by primary key, so that
// the same contents always look the same.
type index[K comparable, V keyed] struct {
	lists *table[K, []V]
}

// keyed is what an index holds: something with a primary key.
type keyed interface {
	comparable
	key() string
}

func (w *Workload) key() string { return w.UID }
func (s *Service) key() string  { return s.Key }

func newIndex[K comparable, V keyed]() index[K, V] {
	return index[K, V]{lists: newTable[K, []V]()}
}

func (x index[K, V]) get(key K) []V {
	list, _ := x.lists.get(key)
	return list
}

// edit starts the next version of x.
func (x index[K, V]) edit() *indexEdit[K, V] {
	return &indexEdit[K, V]{from: x, changes: map[K]map[string]V{}}
}

// indexEdit collects changes, so that a list is copied once however many of its
// members change.
type indexEdit[K comparable, V keyed] struct {
	from index[K, V]
	// changes by list and primary key; the zero V removes.
	changes map[K]map[string]V
}

func (e *indexEdit[K, V]) set(list K, value V)           { e.change(list, value.key(), value) }
func (e *indexEdit[K, V]) remove(list K, primary string) { var none V; e.change(list, primary, none) }

func (e *indexEdit[K, V]) change(list K, primary string, value V) {
	if e.changes[list] == nil {
		e.changes[list] = map[string]V{}
	}
	e.changes[list][primary] = value
}

// finish merges the changes and returns the next version.
func (e *indexEdit[K, V]) finish() index[K, V] {
	if len(e.changes) == 0 {
		return e.from
	}
	lists := e.from.lists.edit()
	for key, changes := range e.changes {
		if merged := merge(e.from.get(key), changes); len(merged) > 0 {
			lists.set(key, merged)
		} else {
			lists.remove(key)
		}
	}
	return index[K, V]{lists: lists.next}
}

// merge returns a new sorted list: old, less what changed, plus what is there now.
func merge[V keyed](old []V, changes map[string]V) []V {
	var none V
	added := make([]V, 0, len(changes))
	for _, v := range changes {
		if v != none {
			added = append(added, v)
		}
	}
	slices.SortFunc(added, func(a, b V) int { return strings.Compare(a.key(), b.key()) })

	out := make([]V, 0, len(old)+len(added))
	for _, v := range old {
		if _, changed := changes[v.key()]; changed {
			continue
		}
		for len(added) > 0 && added[0].key() < v.key() {
			out, added = append(out, added[0]), added[1:]
		}
		out = append(out, v)
	}
	return append(out, added...)
}
