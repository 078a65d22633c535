package feed_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

const (
	stranger = "10.244.9.9"
	newborn  = "10.244.2.5"
)

// answer is what a Lookup returned.
type answer struct {
	found bool
	err   error
}

// lookup asks in the background.
func lookup(f *client, addr string, timeout time.Duration) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		found, err := f.Lookup(ctx, netip.MustParseAddr(addr))
		answers <- answer{found, err}
	}()
	synctest.Wait()
	return answers
}

// subscribes checks that r asks for exactly these, and takes back exactly those.
func subscribes(t *testing.T, r *discovery.DeltaDiscoveryRequest, subscribe, unsubscribe []string) {
	t.Helper()
	gotSub, gotUnsub := slices.Sorted(slices.Values(r.GetResourceNamesSubscribe())), slices.Sorted(slices.Values(r.GetResourceNamesUnsubscribe()))
	if !slices.Equal(gotSub, subscribe) || !slices.Equal(gotUnsub, unsubscribe) {
		t.Errorf("subscribes %v, unsubscribes %v; want %v, %v", gotSub, gotUnsub, subscribe, unsubscribe)
	}
	if r.GetTypeUrl() != workload.AddressType || r.GetResponseNonce() != "" {
		t.Errorf("not a subscription to addresses: %v", r)
	}
}

// A pod that is so new that its push is still under way.
func TestLookupFindsWhatIsNotPushedYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig)

		one := lookup(f, newborn, time.Second)
		two := lookup(f, "::ffff:"+newborn, time.Second)
		subscribes(t, s.request(), []string{"/" + newborn}, nil)
		s.quiet() // The second asker shares the question.
		s.push(workload.AddressType, nil, pod("new", newborn))
		for _, answers := range []<-chan answer{one, two} {
			if a := <-answers; !a.found || a.err != nil {
				t.Errorf("answer is %v", a)
			}
		}
		subscribes(t, s.request(), nil, []string{"/" + newborn})

		// What is known is not asked for.
		if a := <-lookup(f, newborn, time.Second); !a.found {
			t.Errorf("answer is %v", a)
		}
		s.quiet()
	})
}

// A no is remembered for 5 s, and no longer.
func TestLookupOfAStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig)

		asked := lookup(f, stranger, time.Second)
		subscribes(t, s.request(), []string{"/" + stranger}, nil)
		s.push(workload.AddressType, []string{"/" + stranger})
		if a := <-asked; a.found || a.err != nil {
			t.Errorf("answer is %v, want no", a)
		}
		subscribes(t, s.request(), nil, []string{"/" + stranger})

		time.Sleep(4 * time.Second)
		if a := <-lookup(f, stranger, time.Second); a.found || a.err != nil {
			t.Errorf("answer is %v, want no", a)
		}
		s.quiet()

		time.Sleep(2 * time.Second)
		asked = lookup(f, stranger, time.Second)
		subscribes(t, s.request(), []string{"/" + stranger}, nil)
		s.push(workload.AddressType, nil, pod("late", stranger))
		if a := <-asked; !a.found {
			t.Errorf("answer is %v, want yes", a)
		}
	})
}

// Silence is no answer: the asker gets an error, and the question is taken back.
func TestLookupWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig)

		impatient := lookup(f, stranger, time.Second)
		patient := lookup(f, stranger, 3*time.Second)
		subscribes(t, s.request(), []string{"/" + stranger}, nil)
		if a := <-impatient; !errors.Is(a.err, context.DeadlineExceeded) {
			t.Errorf("answer is %v", a)
		}
		s.quiet() // The other one still waits.
		if a := <-patient; !errors.Is(a.err, context.DeadlineExceeded) {
			t.Errorf("answer is %v", a)
		}
		subscribes(t, s.request(), nil, []string{"/" + stranger})
	})
}

// While the controller is away a question waits for it, and is part of the
// first request of the next stream.
func TestLookupWhileDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		c.accept().serve(meshConfig)
		c.stop()
		synctest.Wait()

		asked := lookup(f, newborn, time.Minute)
		c.start()
		s := c.accept()
		first := s.first()
		subscribes(t, first[workload.AddressType], []string{"*", "/" + newborn}, nil)
		s.push(workload.AddressType, nil, pod("new", newborn))
		if a := <-asked; !a.found || a.err != nil {
			t.Errorf("answer is %v", a)
		}
	})
}

// An answer that cannot be read is an error, now and as long as it stays so.
func TestLookupOfSomethingUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig)
		asked := lookup(f, newborn, time.Second)
		s.request()
		s.push(workload.AddressType, nil, pod("new", newborn, unreadable))
		if a := <-asked; a.found || a.err == nil {
			t.Errorf("answer is %v, want an error", a)
		}
		if a := <-lookup(f, newborn, time.Second); a.err == nil {
			t.Errorf("answer is %v, want an error", a)
		}
	})
}

// An address that the controller knows, but that identifies nobody.
func TestLookupOfANodesAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig)
		asked := lookup(f, "10.244.2.1", time.Second)
		s.request()
		s.push(workload.AddressType, nil, pod("agent", "10.244.2.1", onHostNetwork))
		if a := <-asked; a.found || a.err != nil {
			t.Errorf("answer is %v, want no", a)
		}
	})
}

// A pod that scans the pod ranges costs a bounded number of questions.
func TestLookupsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		c.stop()
		f := run(t, c)
		const askers = 1500
		answers := make(chan answer, askers)
		var asking sync.WaitGroup
		for i := range askers {
			asking.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				found, err := f.Lookup(ctx, netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}))
				answers <- answer{found, err}
			})
		}
		asking.Wait()
		close(answers)
		tooMany, late := 0, 0
		for a := range answers {
			switch {
			case errors.Is(a.err, feed.ErrTooManyQuestions):
				tooMany++
			case errors.Is(a.err, context.DeadlineExceeded):
				late++
			}
		}
		if tooMany+late != askers || late == 0 || tooMany == 0 {
			t.Errorf("%d too many, %d without an answer", tooMany, late)
		}
	})
}

// On demand, nothing comes unasked; what was asked for is followed until it is gone.
func TestOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c, func(config *feed.Config) { config.OnDemand = true })
		s := c.accept()
		first := s.first()
		subscribes(t, first[workload.AddressType], []string{"*"}, []string{"*"})
		for _, typeURL := range workload.Types {
			if typeURL == workload.AddressType {
				continue
			}
			if r := first[typeURL]; len(r.GetResourceNamesSubscribe()) != 0 {
				t.Errorf("%s is on demand too: %v", typeURL, r)
			}
		}
		s.push(workload.ConfigType, nil, meshConfig)
		s.pushNothing(workload.TrustBundleType, workload.RevocationListType, workload.NamespaceType, workload.AuthorizationType, workload.EgressPolicyType)
		if !isSynced(f) || !f.Connected() {
			t.Error("not synced, though addresses come on demand")
		}
		if !f.store.Snapshot().Partial() {
			t.Error("the store does not know that it is partial")
		}

		// Found: from now on it is followed.
		asked := lookup(f, newborn, time.Second)
		subscribes(t, s.request(), []string{"/" + newborn}, nil)
		s.push(workload.AddressType, nil, pod("new", newborn))
		if a := <-asked; !a.found {
			t.Errorf("answer is %v", a)
		}
		s.quiet()

		// It is asked for again on a new stream, and so is its latest version told.
		s.cut()
		s = c.accept()
		first = s.first()
		subscribes(t, first[workload.AddressType], []string{"*", uid("new")}, []string{"*"})
		if _, ok := first[workload.AddressType].GetInitialResourceVersions()[uid("new")]; !ok {
			t.Error("its version is not told")
		}

		// Gone.
		s.push(workload.AddressType, []string{uid("new")})
		subscribes(t, s.request(), nil, []string{uid("new")})
		if _, ok := f.store.Snapshot().WorkloadByUID(uid("new")); ok {
			t.Error("it is still there")
		}
	})
}

// On demand, what was asked for is gone, and asked for once more.
func TestOnDemandGoneAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c, func(config *feed.Config) { config.OnDemand = true })
		s := c.accept()
		s.first()
		s.push(workload.ConfigType, nil, meshConfig)
		for _, name := range []string{"one", "two"} {
			asked := lookup(f, newborn, time.Second)
			subscribes(t, s.request(), []string{"/" + newborn}, nil)
			s.push(workload.AddressType, nil, pod(name, newborn))
			if a := <-asked; !a.found {
				t.Errorf("answer is %v", a)
			}
			s.push(workload.AddressType, []string{uid(name)})
			subscribes(t, s.request(), nil, []string{"/" + newborn})
		}
	})
}

// On demand, client and controller are a message apart: what comes for a
// subscription that is being taken back must not start a new one, or the two
// would go on like that for ever.
func TestOnDemandCrossing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c, func(config *feed.Config) { config.OnDemand = true })
		s := c.accept()
		s.first()
		s.push(workload.ConfigType, nil, meshConfig)

		asked := lookup(f, stranger, time.Second)
		subscribes(t, s.request(), []string{"/" + stranger}, nil)
		s.push(workload.AddressType, []string{"/" + stranger})
		if a := <-asked; a.found {
			t.Errorf("answer is %v", a)
		}
		// The controller has not read yet that the client takes it back.
		s.send(workload.AddressType, nil, workloadtest.Resource(t, pod("late", stranger)))
		subscribes(t, s.request(), nil, []string{"/" + stranger})
		s.request() // The acknowledgement.
		s.quiet()
		s.push(workload.AddressType, []string{uid("late")})
		s.quiet()
	})
}

// Many ask at once while answers come and go.
func TestLookupsInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig)
		go func() {
			for r := range s.requests {
				for _, name := range r.GetResourceNamesSubscribe() {
					addr, ok := workload.ParseAddressKey(name)
					if !ok {
						t.Errorf("asks for %q", name)
						return
					}
					last := addr.As4()[3]
					if last%2 == 0 {
						s.send(workload.AddressType, nil, workloadtest.Resource(t, pod(fmt.Sprint("p", last), addr.String())))
					} else {
						s.send(workload.AddressType, []string{name})
					}
				}
			}
		}()
		var asking sync.WaitGroup
		for i := range 400 {
			asking.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				last := byte(i % 100)
				found, err := f.Lookup(ctx, netip.AddrFrom4([4]byte{10, 244, 3, last}))
				if err != nil || found != (last%2 == 0) {
					t.Errorf("10.244.3.%d: %t, %v", last, found, err)
				}
			})
		}
		asking.Wait()
	})
}
