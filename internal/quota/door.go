package quota

import (
	"container/list"
	"sync"
)

// Door lets a number of visitors in at a time: strangers, who have not yet shown
// who they are. When it is full, whoever belongs to the key with the most visitors
// inside makes room for one of a key with fewer. A crowd of one key thus keeps
// out nobody but itself.
type Door[K comparable] struct {
	perKey, total int

	mu sync.Mutex
	// Guarded by mu.
	inside map[K]*list.List // of *visitor, oldest first; none is empty
	count  int
}

type visitor struct {
	leave func()
	evict func()
}

// NewDoor makes a Door.
func NewDoor[K comparable](perKey, total int) *Door[K] {
	return &Door[K]{perKey: perKey, total: total, inside: map[K]*list.List{}}
}

// Enter lets a visitor in until leave is called, or, to make room for somebody
// else, evict: it is called at most once, without any lock, and not after leave.
func (d *Door[K]) Enter(key K, evict func()) (leave func(), ok bool) {
	d.mu.Lock()
	var evicted *visitor
	if queue := d.inside[key]; queue != nil && queue.Len() >= d.perKey {
		d.mu.Unlock()
		return func() {}, false
	}
	if d.count >= d.total {
		if evicted = d.makeRoomLocked(key); evicted == nil {
			d.mu.Unlock()
			return func() {}, false
		}
	}
	leave = d.enterLocked(key, evict)
	d.mu.Unlock()
	if evicted != nil {
		evicted.evict()
	}
	return leave, true
}

func (d *Door[K]) enterLocked(key K, evict func()) (leave func()) {
	queue := d.inside[key]
	if queue == nil {
		queue = list.New()
		d.inside[key] = queue
	}
	v := &visitor{evict: evict}
	element := queue.PushBack(v)
	d.count++
	left := false // guarded by mu
	v.leave = func() {
		if left {
			return
		}
		left = true
		queue.Remove(element)
		d.count--
		if queue.Len() == 0 {
			delete(d.inside, key)
		}
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		v.leave()
	}
}

// makeRoomLocked has the oldest visitor of the most crowded key leave, if that
// key has more inside than key would have then.
func (d *Door[K]) makeRoomLocked(key K) *visitor {
	most := 1
	if queue := d.inside[key]; queue != nil {
		most = queue.Len() + 1
	}
	var crowd *list.List
	for _, queue := range d.inside {
		if queue.Len() > most {
			most, crowd = queue.Len(), queue
		}
	}
	if crowd == nil {
		return nil
	}
	oldest := crowd.Front().Value.(*visitor)
	oldest.leave()
	return oldest
}

// Inside is how many visitors there are.
func (d *Door[K]) Inside() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}
