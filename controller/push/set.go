package push

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/controller/resource"
)

// set is the resources of one type, with the indexes that questions need. It is
// immutable; the sets of successive publications share what did not change.
type set struct {
	byName   map[string]*resource.Resource
	byAlias  map[string][]string // alias -> names
	sentWith map[string][]string // name -> names that go along with it
	byNode   map[string][]string // node -> names that it gets unasked
}

var emptySet = newSet(nil)

func newSet(byName map[string]*resource.Resource) *set {
	s := &set{
		byName:   byName,
		byAlias:  make(map[string][]string),
		sentWith: make(map[string][]string),
		byNode:   make(map[string][]string),
	}
	for name, r := range byName {
		for _, alias := range r.Aliases {
			s.byAlias[alias] = append(s.byAlias[alias], name)
		}
		for _, other := range r.SentWith {
			s.sentWith[other] = append(s.sentWith[other], name)
		}
		if r.Node != "" {
			s.byNode[r.Node] = append(s.byNode[r.Node], name)
		}
	}
	return s
}

// lookup returns the names that a key stands for: the resource of that name, or
// those with that alias.
func (s *set) lookup(key string) []string {
	if _, ok := s.byName[key]; ok {
		return []string{key}
	}
	return s.byAlias[key]
}

// selectKeys returns the subset that a proxy on a node gets for these keys.
func (s *set) selectKeys(keys map[string]struct{}, node string) *set {
	selected := make(map[string]*resource.Resource)
	for key := range keys {
		for _, name := range s.lookup(key) {
			selected[name] = s.byName[name]
			for _, along := range s.sentWith[name] {
				selected[along] = s.byName[along]
			}
		}
	}
	for _, name := range s.byNode[node] {
		selected[name] = s.byName[name]
	}
	return &set{byName: selected}
}

// sortedByName returns the resources in a stable order.
func sortedByName(resources map[string]*resource.Resource) []*resource.Resource {
	return slices.SortedFunc(maps.Values(resources), byName)
}

// difference is what turns one set into another.
type difference struct {
	changed []*resource.Resource // by name
	removed []string             // sorted
}

func differ(from, to *set) *difference {
	d := &difference{}
	if from == to {
		return d
	}
	for name, r := range to.byName {
		if held, ok := from.byName[name]; !ok || held.Version != r.Version {
			d.changed = append(d.changed, r)
		}
	}
	for name := range from.byName {
		if _, ok := to.byName[name]; !ok {
			d.removed = append(d.removed, name)
		}
	}
	slices.SortFunc(d.changed, byName)
	slices.Sort(d.removed)
	return d
}

// world is one publication: a set for every type.
type world struct {
	publication uint64
	at          time.Time
	sets        map[string]*set

	// Most proxies go from one and the same set to the next: that difference is
	// worked out once.
	mu    sync.Mutex
	diffs map[[2]*set]*difference // guarded by mu
}

// newWorld returns the publication after previous (nil before the first), which
// is previous itself if nothing changed.
func newWorld(previous *world, resources resource.Resources) *world {
	next := &world{
		publication: 1,
		at:          time.Now(),
		sets:        make(map[string]*set, len(resources)),
		diffs:       make(map[[2]*set]*difference),
	}
	var old map[string]*set
	if previous != nil {
		next.publication = previous.publication + 1
		old = previous.sets
	}
	for typeURL, byName := range resources {
		next.sets[typeURL] = succeed(old[typeURL], byName)
	}
	if previous != nil && maps.Equal(old, next.sets) {
		return previous
	}
	return next
}

// succeed builds the set that follows old, which is old itself if nothing changed.
func succeed(old *set, byName map[string]*resource.Resource) *set {
	if old == nil {
		return newSet(maps.Clone(byName))
	}
	same := len(old.byName) == len(byName)
	merged := make(map[string]*resource.Resource, len(byName))
	for name, r := range byName {
		if before, ok := old.byName[name]; ok && before.Version == r.Version {
			merged[name] = before
			continue
		}
		merged[name] = r
		same = false
	}
	if same {
		return old
	}
	return newSet(merged)
}

// set of a type; empty for a type that nobody publishes.
func (w *world) set(typeURL string) *set {
	if s, ok := w.sets[typeURL]; ok {
		return s
	}
	return emptySet
}

// differ is [differ] between two published sets, remembered.
func (w *world) differ(from, to *set) *difference {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := [2]*set{from, to}
	d, ok := w.diffs[key]
	if !ok {
		d = differ(from, to)
		w.diffs[key] = d
	}
	return d
}
