package hbone

import "slices"

// keptLate is how many of them a tunnel remembers: more than are open at
// once, so that all may end together.
const keptLate = 256

// lateStreams are those that this side ended before the peer had closed its half:
// until it knows, frames may still come for them, and are dropped (RFC 9113
// section 5.1). On a stream that ended in any other way none may.
type lateStreams struct {
	ids []uint32 // as they ended
	// forgotten is the highest that has fallen out of ids.
	forgotten uint32
}

func (r *lateStreams) add(id uint32) {
	if len(r.ids) == keptLate {
		r.forgotten = max(r.forgotten, r.ids[0])
		r.ids = append(r.ids[:0], r.ids[1:]...)
	}
	r.ids = append(r.ids, id)
}

// maybe reports whether a stream that is not open may be one of them.
func (r *lateStreams) maybe(id uint32) bool {
	return id <= r.forgotten || slices.Contains(r.ids, id)
}
