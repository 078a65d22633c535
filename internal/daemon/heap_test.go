package daemon

import (
	"runtime"
	"testing"
)

var garbage []byte

// collections is how often garbage is collected while 256 MiB of it are made.
func collections() uint32 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 4096 {
		garbage = make([]byte, 64<<10)
	}
	runtime.ReadMemStats(&after)
	return after.NumGC - before.NumGC
}

func TestHeapFloorSparesCollections(t *testing.T) {
	without := collections()
	release := HeapFloor(32 << 20)
	with := collections()
	release()
	if with*2 > without {
		t.Errorf("%d collections with a floor, %d without", with, without)
	}
}
