package report

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

const system = "ambit-system"

// world is a registry with everything around it. Its tests run in a bubble:
// the clock is the bubble's.
type world struct {
	t        *testing.T
	registry *Registry
	client   *fake.Clientset
	acks     *push
	tunnels  *tunnels
	changed  []types.NamespacedName
	nodes    []string
}

// push is what configuration streams there are.
type push struct {
	mu        sync.Mutex
	connected []string
	// acked is the publication that a node has acknowledged.
	acked map[string]uint64
}

func (p *push) Connected() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.connected)
}

func (p *push) Behind(publication uint64) (behind []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, node := range p.connected {
		if p.acked[node] < publication {
			behind = append(behind, node)
		}
	}
	return behind
}

func (p *push) connect(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.connected, node) {
		p.connected = append(p.connected, node)
	}
}

func (p *push) disconnect(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = slices.DeleteFunc(p.connected, func(n string) bool { return n == node })
}

func (p *push) ack(node string, publication uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked[node] = publication
}

// tunnels says the same of all nodes.
type tunnels struct{ mayRun, gone atomic.Bool }

func (t *tunnels) MayRun(string) bool { return t.mayRun.Load() }
func (t *tunnels) Exists(string) bool { return !t.gone.Load() }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, client: fake.NewClientset(), acks: &push{acked: map[string]uint64{}}, tunnels: &tunnels{}}
	w.start()
	return w
}

// start makes a registry that knows nothing, as after a restart.
func (w *world) start() {
	w.registry = NewRegistry(RegistryConfig{
		Acks: w.acks, Tunnels: w.tunnels, Leases: w.client.CoordinationV1().Leases(system),
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	w.registry.OnCaptured(func(pod types.NamespacedName) { w.changed = append(w.changed, pod) })
	w.registry.OnNode(func(node string) { w.nodes = append(w.nodes, node) })
}

// lead runs the registry as the leader until the test, or what it returns, ends it.
func (w *world) lead() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error)
	go func() { ended <- w.registry.Run(ctx) }()
	synctest.Wait()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(stop)
	return stop
}

// connect opens both streams of a node.
func (w *world) connect(node string) *session {
	w.acks.connect(node)
	return w.registry.open(node, &reportapi.Hello{Node: node, PodName: "ztunnel-" + node, Version: "test"})
}

// disconnect ends both streams of a node.
func (w *world) disconnect(s *session) {
	w.registry.close(s)
	w.acks.disconnect(s.node)
}

var cart = types.NamespacedName{Namespace: "shop", Name: "cart"}

const uid = types.UID("uid-cart")

func stateOf(state reportapi.CaptureState) *reportapi.WorkloadState {
	return &reportapi.WorkloadState{Namespace: "shop", Name: "cart", Uid: string(uid), State: state}
}

func (w *world) observe(s *session, state reportapi.CaptureState) {
	w.t.Helper()
	if err := w.registry.observe(s, stateOf(state)); err != nil {
		w.t.Fatal(err)
	}
}

// captured makes the pod HBONE: reported, written, published and acknowledged.
func (w *world) captured(s *session) {
	w.t.Helper()
	w.observe(s, reportapi.CaptureState_CAPTURED)
	w.registry.Remember(cart, uid, Remembered{HBONE: true})
	w.publish(1)
	w.ack(1)
	if !w.registry.Captured().Has(uid) {
		w.t.Fatal("not captured")
	}
}

func (w *world) publishDisagreed(number uint64, disagreed int) {
	w.registry.Published(Publication{Generation: w.registry.Captured().Generation(), Number: number, Disagreed: disagreed})
}

func (w *world) publish(number uint64) {
	w.registry.Published(Publication{Generation: w.registry.Captured().Generation(), Number: number})
}

func (w *world) ack(number uint64, nodes ...string) {
	if len(nodes) == 0 {
		nodes = w.acks.Connected()
	}
	for _, node := range nodes {
		w.acks.ack(node, number)
	}
}

// releases returns what is due on a node's stream after the loop had its turn.
func (w *world) releases(s *session) []types.UID {
	time.Sleep(2 * releaseInterval)
	synctest.Wait()
	var uids []types.UID
	for _, due := range w.registry.due(s) {
		uids = append(uids, due.uid)
	}
	return uids
}

func (w *world) beating(sessions ...*session) {
	ctx, cancel := context.WithCancel(w.t.Context())
	w.t.Cleanup(cancel)
	go tick(ctx, 5*time.Second, func() {
		for _, s := range sessions {
			w.registry.beat(s, &reportapi.Heartbeat{})
		}
	})
}

func TestCapturedFollowsWhatIsWrittenNotWhatIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.connect("n1")
		w.observe(s, reportapi.CaptureState_CAPTURED)
		if w.registry.Captured().Has(uid) {
			t.Error("captured before it was written")
		}
		before := w.registry.Captured()
		w.registry.Remember(cart, uid, Remembered{HBONE: true})
		if !w.registry.Captured().Has(uid) || before.Has(uid) {
			t.Error("the set did not change, or a view did")
		}
		if w.registry.Captured().Generation() <= before.Generation() {
			t.Error("the generation did not move")
		}
		if !slices.Equal(w.changed, []types.NamespacedName{cart}) {
			t.Errorf("told of %v", w.changed)
		}
	})
}

func TestNothingButWithdrawalOrDeletionEndsHBONE(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.connect("n1")
		w.captured(s)
		w.lead()
		removed := stateOf(reportapi.CaptureState_UNKNOWN)
		removed.Removed = true
		for _, c := range []struct {
			title   string
			happens func()
		}{
			{"the node fails to capture", func() { w.observe(s, reportapi.CaptureState_FAILED) }},
			{"the node begins anew", func() { w.observe(s, reportapi.CaptureState_PENDING) }},
			{"the node says it is not enrolled", func() { w.observe(s, reportapi.CaptureState_NOT_ENROLLED) }},
			{"the pod is gone from the node", func() { _ = w.registry.observe(s, removed) }},
			{"the stream ends", func() { w.disconnect(s) }},
			{"the node is silent", func() { time.Sleep(time.Hour) }},
			{"a snapshot does not mention it", func() { w.registry.snapshotSent(w.connect("n1")) }},
		} {
			c.happens()
			synctest.Wait()
			if !w.registry.Captured().Has(uid) {
				t.Fatalf("%s: no longer HBONE", c.title)
			}
		}
		w.registry.Forget(uid)
		if w.registry.Captured().Has(uid) {
			t.Error("the pod object is gone, and it is still captured")
		}
	})
}

func TestSeedOfARestart(t *testing.T) {
	w := newWorld(t)
	w.registry.Seed(cart, uid, Remembered{HBONE: true})
	if !w.registry.Captured().Has(uid) {
		t.Fatal("a restart forgot")
	}
	// The leader's own word is newer than any event of the informer.
	w.registry.Remember(cart, uid, Remembered{})
	w.registry.Seed(cart, uid, Remembered{HBONE: true})
	if w.registry.Captured().Has(uid) {
		t.Error("an old event took back a withdrawal")
	}
	// A follower goes with the events.
	w.registry.Seed(cart, "uid-2", Remembered{HBONE: true})
	w.registry.Seed(cart, "uid-2", Remembered{})
	if w.registry.Captured().Has("uid-2") {
		t.Error("a follower did not follow")
	}
}

func TestObservationsCountOnlyOnTheirNode(t *testing.T) {
	w := newWorld(t)
	foreign := w.connect("n2")
	w.observe(foreign, reportapi.CaptureState_WITHDRAWING)
	if _, ok := w.registry.Observed("n1", uid); ok {
		t.Error("a pod of n1 is described by n2")
	}
	// The same name with another UID is another pod.
	own := w.connect("n1")
	w.observe(own, reportapi.CaptureState_CAPTURED)
	if _, ok := w.registry.Observed("n1", "uid-of-the-next-cart"); ok {
		t.Error("a pod made anew is described by its predecessor")
	}
}

func TestSnapshotDropsWhatItDoesNotMention(t *testing.T) {
	w := newWorld(t)
	first := w.connect("n1")
	w.observe(first, reportapi.CaptureState_CAPTURED)
	if w.registry.Reporting("n1") {
		t.Error("reporting before the snapshot is complete")
	}
	w.registry.snapshotSent(first)
	if !w.registry.Reporting("n1") {
		t.Error("not reporting after the snapshot")
	}
	second := w.connect("n1")
	if _, ok := w.registry.Observed("n1", uid); !ok {
		t.Error("dropped before the new snapshot is complete")
	}
	w.registry.snapshotSent(second)
	if _, ok := w.registry.Observed("n1", uid); ok {
		t.Error("still observed by a node that does not mention it")
	}
	if !slices.Contains(w.nodes, "n1") {
		t.Error("nobody was told")
	}
}

func TestOnlyTheNewestStreamOfANodeCounts(t *testing.T) {
	w := newWorld(t)
	old := w.connect("n1")
	_ = w.connect("n1")
	select {
	case <-old.replaced:
	default:
		t.Error("the old stream was not ended")
	}
	if err := w.registry.observe(old, stateOf(reportapi.CaptureState_WITHDRAWING)); err == nil {
		t.Error("the old stream still speaks")
	}
	w.registry.snapshotSent(old)
	if w.registry.Reporting("n1") {
		t.Error("the old stream completed the new one's snapshot")
	}
}

func TestANodeCannotFillTheMemory(t *testing.T) {
	w := newWorld(t)
	s := w.connect("n1")
	var err error
	for i := range maxObservations + 1 {
		err = w.registry.observe(s, &reportapi.WorkloadState{
			Namespace: "a", Name: "b", Uid: string(rune(i + 1)), Reason: string(make([]byte, 10*maxTextBytes)),
		})
	}
	if err == nil || len(w.registry.nodes["n1"].observed) != maxObservations {
		t.Errorf("%d observations, %v", len(w.registry.nodes["n1"].observed), err)
	}
	if got := w.registry.nodes["n1"].observed["\x01"].Reason; len(got) != maxTextBytes {
		t.Errorf("a reason of %d bytes", len(got))
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()
		s := w.connect("n1")
		heard := time.Now()
		time.Sleep(SilentAfter - time.Second)
		if _, silent := w.registry.Silent("n1"); silent {
			t.Error("silent too early")
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		last, silent := w.registry.Silent("n1")
		if !silent || !last.Equal(heard) {
			t.Errorf("silent %v since %v, heard %v", silent, last, heard)
		}
		if len(w.nodes) != 1 {
			t.Errorf("told %v", w.nodes)
		}
		w.registry.beat(s, &reportapi.Heartbeat{})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, silent := w.registry.Silent("n1"); silent || len(w.nodes) != 2 {
			t.Errorf("came back: silent %v, told %v", silent, w.nodes)
		}
		if _, silent := w.registry.Silent("n9"); silent {
			t.Error("a node that never reported is silent")
		}
	})
}

func TestHeartbeatsAreOneLeaseANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.lead()
		s := w.connect("n1")
		time.Sleep(4 * time.Second)
		w.registry.beat(s, &reportapi.Heartbeat{Problems: []string{"BPFFSMissing: mount it"}})
		heard := time.Now()
		time.Sleep(2*leaseInterval + time.Second)
		synctest.Wait()
		leases := w.client.CoordinationV1().Leases(system)
		lease, err := leases.Get(t.Context(), "ztunnel-n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !lease.Spec.RenewTime.Time.Equal(heard) || *lease.Spec.HolderIdentity != "ztunnel-n1" || *lease.Spec.LeaseDurationSeconds != 30 {
			t.Errorf("lease %+v, heard %v", lease.Spec, heard)
		}
		if got := lease.Annotations["ambit.mesh/problems"]; got != "BPFFSMissing: mount it" {
			t.Errorf("problems %q", got)
		}
		writes := 0
		for _, action := range w.client.Actions() {
			if action.GetVerb() == "patch" {
				writes++
			}
		}
		if writes > 2 {
			t.Errorf("%d writes for two heartbeats", writes)
		}

		// A new leader knows when the node was heard last; the node has the
		// time of a silence to find it.
		stop()
		w.start()
		time.Sleep(time.Minute)
		w.lead()
		if _, silent := w.registry.Silent("n1"); silent {
			t.Error("silent before it could have reported")
		}
		time.Sleep(SilentAfter + 2*time.Second)
		synctest.Wait()
		if last, silent := w.registry.Silent("n1"); !silent || !last.Equal(heard) {
			t.Errorf("silent %v since %v", silent, last)
		}

		// The record of a node that is gone goes as well.
		w.tunnels.gone.Store(true)
		time.Sleep(2 * leaseInterval)
		synctest.Wait()
		if list, err := leases.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
			t.Errorf("%d leases left, %v", len(list.Items), err)
		}
	})
}
