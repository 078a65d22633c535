package pods

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// soakPods come and go, soakAtOnce of them at a time. What a node sees in a month,
// with a C compiler:
//
//	CGO_ENABLED=1 go test -race -run CameAndWent ./ztunnel/pods -soak 5000
var soakPods = flag.Int("soak", 150, "how many pods come and go")

const soakAtOnce = 8

// TestNothingIsLeftOfPodsThatCameAndWent takes pods through everything that can
// happen to them, many at once and in any order: enrolled, let go, enrolled
// again, in another sandbox, deleted before and after their sandbox.
func TestNothingIsLeftOfPodsThatCameAndWent(t *testing.T) {
	w := newWorld(t)
	w.label("shop", modeAmbient)
	w.start()
	<-w.pods.Ready()
	time.Sleep(100 * time.Millisecond) // for what starts late
	goroutines, files := runtime.NumGoroutine(), openFiles(t)

	began := time.Now()
	numbers := make(chan int)
	var group sync.WaitGroup
	for range soakAtOnce {
		group.Go(func() {
			for n := range numbers {
				w.live(n)
			}
		})
	}
	for n := range *soakPods {
		numbers <- n
	}
	close(numbers)
	group.Wait()
	t.Logf("%d pods lived and died in %s", *soakPods, time.Since(began))

	w.eventually("no worker is left", func() bool {
		w.pods.mu.Lock()
		defer w.pods.mu.Unlock()
		return len(w.pods.workers) == 0
	})
	w.eventually("nothing is captured or pinned", func() bool {
		w.dataplane.mu.Lock()
		defer w.dataplane.mu.Unlock()
		return len(w.dataplane.running)+len(w.dataplane.pins) == 0
	})
	w.eventually("the file is empty", func() bool {
		content, err := savedKind.Read(w.file("pods.json"))
		var file savedFile
		return err == nil && json.Unmarshal(content, &file) == nil && len(file.Pods) == 0
	})
	w.eventually("no goroutine and no descriptor is left", func() bool {
		return runtime.NumGoroutine() <= goroutines+2 && openFiles(t) <= files+2
	})
	for _, call := range w.dataplane.calls() {
		if len(call) > 7 && call[:7] == "doubled" {
			t.Errorf("a pod was captured twice at once: %s", call)
		}
	}
}

// live is the life of one pod.
func (w *world) live(n int) {
	name := fmt.Sprintf("p%04d", n)
	uid := "shop-" + name
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	sandbox := func(generation int) cniproto.AddRequest {
		path := fmt.Sprintf("/run/netns/%s-%d", name, generation)
		ip := netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), byte(1 + generation)})
		w.namespaces.add(path, time.Now(), []netip.Addr{ip})
		return cniproto.AddRequest{Namespace: "shop", Name: name, UID: uid, ContainerID: path, NetNS: path, Addresses: []string{ip.String()}}
	}
	add := func(request cniproto.AddRequest) {
		if captured, err := w.pods.admit(ctx, request); err != nil || !captured {
			w.t.Errorf("%s: captured %v, %v", name, captured, err)
		}
	}
	pod := w.pod("shop", name)
	w.put(pod)
	present := sandbox(0)
	add(present)
	for generation := range rand.IntN(3) {
		switch rand.IntN(3) {
		case 0: // let go, and asked for again
			pod = w.pod("shop", name)
			pod.Labels = map[string]string{DataplaneModeLabel: modeNone}
			w.put(pod)
			for status, ok := w.status(uid); ok && status.State != StateReleased && ctx.Err() == nil; status, ok = w.status(uid) {
				w.pods.Release(uid, status.Since)
				time.Sleep(time.Millisecond)
			}
			pod = w.pod("shop", name)
			pod.Labels = nil
			w.put(pod)
			for w.dataplane.sandboxOf(uid) == "" && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		case 1: // another sandbox, the old one's end told
			w.pods.sandboxEnded(cniproto.DelRequest{NetNS: present.NetNS})
			w.namespaces.remove(present.NetNS)
			present = sandbox(generation + 1)
			add(present)
		case 2: // another sandbox, and nobody tells of the old one
			w.namespaces.remove(present.NetNS)
			present = sandbox(generation + 1)
			add(present)
		}
	}
	if ctx.Err() != nil {
		status, _ := w.status(uid)
		w.t.Errorf("%s: stuck, captured in %q: %+v", name, w.dataplane.sandboxOf(uid), status)
	}
	gone := func() {
		if err := w.client.CoreV1().Pods("shop").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			w.t.Error(err)
		}
	}
	if rand.IntN(2) == 0 {
		gone()
		defer w.namespaces.remove(present.NetNS)
		w.pods.sandboxEnded(cniproto.DelRequest{NetNS: present.NetNS})
		return
	}
	w.pods.sandboxEnded(cniproto.DelRequest{NetNS: present.NetNS})
	w.namespaces.remove(present.NetNS)
	gone()
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
