package workload

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

// A table behaves as a map does, and a version that was published never
// changes, whatever is edited after it.
func TestTableVersionsAreImmutable(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	current := newTable[string, int]()
	want := map[string]int{}
	type version struct {
		table *table[string, int]
		want  map[string]int
	}
	var published []version

	for range 200 {
		e := current.edit()
		for range random.IntN(30) {
			key := fmt.Sprint(random.IntN(500))
			if random.IntN(3) == 0 {
				e.remove(key)
				delete(want, key)
			} else {
				value := random.Int()
				e.set(key, value)
				want[key] = value
			}
		}
		current = e.next
		published = append(published, version{current, maps.Clone(want)})
	}

	for i, v := range published {
		got := maps.Collect(v.table.all())
		if !maps.Equal(got, v.want) {
			t.Fatalf("version %d: got %d entries, want %d", i, len(got), len(v.want))
		}
		if v.table.len != len(v.want) {
			t.Fatalf("version %d: len %d, want %d", i, v.table.len, len(v.want))
		}
		for key, value := range v.want {
			if got, ok := v.table.get(key); !ok || got != value {
				t.Fatalf("version %d: %q is %d, %t, want %d", i, key, got, ok, value)
			}
		}
	}
}

// An edit copies only the shards that it touches.
func TestTableEditSharesTheRest(t *testing.T) {
	fill := newTable[string, int]().edit()
	for i := range 10_000 {
		fill.set(fmt.Sprint(i), i)
	}
	e := fill.next.edit()
	e.set("1", -1)
	e.remove("2")

	copied := 0
	for i := range e.owned {
		if e.owned[i] {
			copied++
		}
	}
	if copied > 2 {
		t.Errorf("%d shards copied for two keys", copied)
	}
}

// Lists stay sorted, whatever joins and leaves in one edit.
func TestIndexMerges(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	x := newIndex[string, *Workload]()
	want := map[string]bool{}
	for range 300 {
		e := x.edit()
		for range random.IntN(20) {
			uid := fmt.Sprintf("w%03d", random.IntN(200))
			if random.IntN(2) == 0 {
				e.set("list", &Workload{UID: uid})
				want[uid] = true
			} else {
				e.remove("list", uid)
				delete(want, uid)
			}
		}
		x = e.finish()

		got := x.get("list")
		if len(got) != len(want) {
			t.Fatalf("%d members, want %d", len(got), len(want))
		}
		for i, w := range got {
			if !want[w.UID] {
				t.Fatalf("%s is a member", w.UID)
			}
			if i > 0 && got[i-1].UID >= w.UID {
				t.Fatalf("%s before %s", got[i-1].UID, w.UID)
			}
		}
	}
}
