package feed_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// An hour without the controller takes nothing away and answers nothing: what
// is known stays, a stranger stays unknown and never becomes a no, and the
// controller is found again within a backoff, told of all that is there.
func TestAnHourWithoutTheController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig, pod("cart", "10.244.1.7"))
		// A no from before may not outlive the controller by more than it is good for.
		asked := lookup(f, stranger, time.Second)
		s.request()
		s.push(workload.AddressType, []string{"/" + stranger})
		if a := <-asked; a.found || a.err != nil {
			t.Fatalf("answer is %v, want no", a)
		}
		s.request()
		version := f.store.Snapshot().Version()
		c.stop()

		time.Sleep(10 * time.Second)
		for range 59 {
			time.Sleep(time.Minute)
			if f.Connected() || !isSynced(f) || f.store.Snapshot().Version() != version {
				t.Fatalf("connected %v, synced %v, version %s, was %s", f.Connected(), isSynced(f), f.store.Snapshot().Version(), version)
			}
			if _, ok := f.store.Snapshot().WorkloadByAddr(netip.MustParseAddr("10.244.1.7")); !ok {
				t.Fatal("a known pod is gone")
			}
			if a := <-lookup(f, stranger, 2*time.Second); a.found || !errors.Is(a.err, context.DeadlineExceeded) {
				t.Fatalf("answer about a stranger is %v, from nobody", a)
			}
		}
		c.start()
		began := time.Now()
		first := c.accept().first()
		if took := time.Since(began); took > 16*time.Second {
			t.Errorf("found again after %s", took)
		}
		if got := first[workload.AddressType].GetInitialResourceVersions(); len(got) != 1 {
			t.Errorf("claims to have %v", got)
		}
	})
}
