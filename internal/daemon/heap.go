package daemon

import "runtime"

// HeapFloor spares a process that keeps little from collecting garbage many times a
// second: the collector runs when the heap has doubled, and counts n bytes more as kept,
// until release. They are never touched, and so are no memory; what waits to be collected
// may be n bytes more.
func HeapFloor(n int) (release func()) {
	kept := make([]byte, n)
	return func() { runtime.KeepAlive(kept) }
}
