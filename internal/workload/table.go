package workload

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shardCount bounds what one changed key costs: at 100,000 keys a copied shard
// holds about 100 of them, and the array of shards is 8 KiB.
const shardCount = 1024

// table is an immutable map in shards. An edit shares the shards that it does
// not touch.
type table[K comparable, V any] struct {
	seed   maphash.Seed
	shards [shardCount]map[K]V
	len    int
}

func newTable[K comparable, V any]() *table[K, V] {
	return &table[K, V]{seed: maphash.MakeSeed()}
}

func (t *table[K, V]) shard(key K) int {
	return int(maphash.Comparable(t.seed, key) % shardCount)
}

func (t *table[K, V]) get(key K) (V, bool) {
	v, ok := t.shards[t.shard(key)][key]
	return v, ok
}

// all yields every entry, in no order.
func (t *table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, shard := range t.shards {
			for k, v := range shard {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// edit starts the next version of t.
func (t *table[K, V]) edit() *tableEdit[K, V] {
	next := *t
	return &tableEdit[K, V]{next: &next}
}

// tableEdit is the next version of a table while it is being made. Its next
// is finished, and immutable, when the edit is dropped.
type tableEdit[K comparable, V any] struct {
	next  *table[K, V]
	owned [shardCount]bool
}

func (e *tableEdit[K, V]) get(key K) (V, bool) { return e.next.get(key) }

func (e *tableEdit[K, V]) set(key K, value V) {
	shard := e.own(key)
	before := len(shard)
	shard[key] = value
	e.next.len += len(shard) - before
}

func (e *tableEdit[K, V]) remove(key K) {
	if _, ok := e.next.get(key); !ok {
		return
	}
	delete(e.own(key), key)
	e.next.len--
}

// own returns the shard of key, copied if it is still shared.
func (e *tableEdit[K, V]) own(key K) map[K]V {
	i := e.next.shard(key)
	if !e.owned[i] {
		e.owned[i] = true
		e.next.shards[i] = maps.Clone(e.next.shards[i])
		if e.next.shards[i] == nil {
			e.next.shards[i] = map[K]V{}
		}
	}
	return e.next.shards[i]
}
