package status

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/report"
)

const (
	system = "ambit-system"
	// patience with what happens in other goroutines.
	patience = 15 * time.Second
	// calm is how long nothing has to happen to believe that nothing will.
	calm = 300 * time.Millisecond
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// cluster is Kubernetes and one controller process in it.
type cluster struct {
	t      *testing.T
	kube   *fake.Clientset
	api    *apiServer
	offset atomic.Int64 // of the clock

	// Of the process that runs now.
	registry   *report.Registry
	reports    *report.Server
	reconciler *Reconciler
	stop       func()
}

func newCluster(t *testing.T, objects ...*corev1.Pod) *cluster {
	t.Helper()
	c := &cluster{t: t, api: newAPIServer(t), kube: fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{Label: "ambient"}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "plain"}},
	)}
	for _, pod := range objects {
		c.create(pod)
	}
	return c
}

func (c *cluster) now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

// start runs a controller process, as the leader or as a follower.
func (c *cluster) start(leads bool) {
	c.t.Helper()
	factory := informers.NewSharedInformerFactory(c.kube, 0)
	core := factory.Core().V1()
	pods, err := ca.NewPods(core.Pods())
	if err != nil {
		c.t.Fatal(err)
	}
	c.registry = report.NewRegistry(report.RegistryConfig{
		Acks: allAcked{}, Tunnels: report.NewTunnels(pods, core.Nodes().Lister(), system),
		Leases: c.kube.CoordinationV1().Leases(system), Now: c.now, Logger: quiet(),
	})
	c.reports = report.NewServer(report.ServerConfig{
		Registry: c.registry, Authenticator: anyTunnel{}, Pods: pods, Leading: func() bool { return leads },
		SystemNamespace: system, Logger: quiet(),
	})
	c.reconciler, err = New(Config{
		Client: c.api.client(c.t), Pods: core.Pods(), Namespaces: core.Namespaces(), NodePods: pods, Registry: c.registry,
		TrustDomain: "cluster.local", Now: c.now, Logger: quiet(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	runs := []func(context.Context) error{c.reconciler.Run}
	if leads {
		runs = append(runs, c.reconciler.RunLeader, c.registry.Run)
	}
	factory.StartWithContext(ctx)
	ended := make(chan error)
	for _, run := range runs {
		go func() { ended <- run(ctx) }()
	}
	c.stop = func() {
		cancel()
		for range runs {
			if err := <-ended; err != nil {
				c.t.Error(err)
			}
		}
		factory.Shutdown()
		c.stop = func() {}
	}
	c.t.Cleanup(func() { c.stop() })
}

// lead runs a leader and waits until it may publish.
func (c *cluster) lead() {
	c.t.Helper()
	c.start(true)
	c.synced()
}

func (c *cluster) synced() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if err := c.reconciler.WaitSynced(ctx); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) create(pod *corev1.Pod) {
	c.t.Helper()
	if _, err := c.kube.CoreV1().Pods(pod.Namespace).Create(context.Background(), pod, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) update(pod *corev1.Pod) {
	c.t.Helper()
	if _, err := c.kube.CoreV1().Pods(pod.Namespace).Update(context.Background(), pod, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) delete(pod *corev1.Pod) {
	c.t.Helper()
	if err := c.kube.CoreV1().Pods(pod.Namespace).Delete(context.Background(), pod.Name, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) label(namespace string, labels map[string]string) {
	c.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: labels}}
	if _, err := c.kube.CoreV1().Namespaces().Update(context.Background(), ns, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) eventually(what string, holds func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("never: %s; cart is %+v", what, c.api.get("shop/cart"))
		}
	}
}

// shows waits until the cart has a summary and a protocol.
func (c *cluster) shows(summary string, protocol v1alpha1.Protocol) {
	c.t.Helper()
	c.eventually(summary+" over "+string(protocol), func() bool {
		w := c.api.get("shop/cart")
		return w != nil && strings.HasPrefix(w.Status.Summary, summary) && w.Status.Protocol == protocol
	})
}

func (c *cluster) isCaptured(uid types.UID) bool { return c.registry.Captured().Has(uid) }

func (c *cluster) leaves(uid types.UID) bool { return c.registry.Captured().Leaving().Has(uid) }

// allAcked is a mesh in which everybody has everything.
type allAcked struct{}

func (allAcked) Connected() []string    { return []string{"n1", "n2"} }
func (allAcked) Behind(uint64) []string { return nil }

// anyTunnel takes the node's name in the context for the token of its ztunnel.
type anyTunnel struct{}

type nodeKey struct{}

func (anyTunnel) Authenticate(ctx context.Context) (ca.Peer, error) {
	node, _ := ctx.Value(nodeKey{}).(string)
	return ca.Peer{Namespace: system, ServiceAccount: ca.TunnelServiceAccount, PodName: "ztunnel", PodUID: "uid", Node: node}, nil
}

// node is a node's end of a report stream, and the stream.
type node struct {
	grpc.ServerStream
	ctx     context.Context
	said    chan *reportapi.NodeReport
	replies chan *reportapi.ControllerReply
}

func (n *node) Context() context.Context { return n.ctx }

func (n *node) Send(reply *reportapi.ControllerReply) error { n.replies <- reply; return nil }

func (n *node) Recv() (*reportapi.NodeReport, error) {
	select {
	case message := <-n.said:
		return message, nil
	case <-n.ctx.Done():
		return nil, n.ctx.Err()
	}
}

// node opens the report stream of a node.
func (c *cluster) node(name string) (n *node, hangUp func()) {
	ctx, cancel := context.WithCancel(context.WithValue(c.t.Context(), nodeKey{}, name))
	n = &node{ctx: ctx, said: make(chan *reportapi.NodeReport), replies: make(chan *reportapi.ControllerReply, 16)}
	ended := make(chan struct{})
	reports := c.reports
	go func() { defer close(ended); _ = reports.Report(n) }()
	n.say(&reportapi.NodeReport{Kind: &reportapi.NodeReport_Hello{Hello: &reportapi.Hello{Node: name, PodName: "ztunnel"}}})
	hangUp = func() { cancel(); <-ended }
	c.t.Cleanup(hangUp)
	return n, hangUp
}

func (n *node) say(message *reportapi.NodeReport) {
	select {
	case n.said <- message:
	case <-n.ctx.Done():
	}
}

func (n *node) report(pod *corev1.Pod, state reportapi.CaptureState, change ...func(*reportapi.WorkloadState)) {
	w := &reportapi.WorkloadState{Namespace: pod.Namespace, Name: pod.Name, Uid: string(pod.UID), State: state}
	for _, f := range change {
		f(w)
	}
	n.say(&reportapi.NodeReport{Kind: &reportapi.NodeReport_Workload{Workload: w}})
}

func (n *node) complete() {
	n.say(&reportapi.NodeReport{Kind: &reportapi.NodeReport_SnapshotSent{SnapshotSent: &reportapi.SnapshotSent{}}})
}

func (n *node) beat() {
	n.say(&reportapi.NodeReport{Kind: &reportapi.NodeReport_Heartbeat{Heartbeat: &reportapi.Heartbeat{}}})
}

func TestLifeOfAWorkload(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	c.shows("Pending: NotReported", v1alpha1.ProtocolTCP)
	w := c.api.get("shop/cart")
	if len(w.OwnerReferences) != 1 || w.OwnerReferences[0].UID != pod.UID || w.OwnerReferences[0].Kind != "Pod" || w.OwnerReferences[0].Name != "cart" {
		t.Errorf("owned by %+v", w.OwnerReferences)
	}
	if w.Spec.Identity != "spiffe://cluster.local/ns/shop/sa/cart" || w.Spec.Node != "n1" || !slices.Equal(w.Spec.Addresses, []string{"10.244.1.5", "fd00::5"}) {
		t.Errorf("spec %+v", w.Spec)
	}

	n, _ := c.node("n1")
	n.report(pod, reportapi.CaptureState_PENDING)
	n.complete()
	c.shows("Pending", v1alpha1.ProtocolTCP)
	n.report(pod, reportapi.CaptureState_CAPTURED)
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	c.eventually("it is published", func() bool { return c.isCaptured(pod.UID) })

	c.label("shop", nil)
	n.report(pod, reportapi.CaptureState_WITHDRAWING)
	c.shows("Pending: Withdrawing", v1alpha1.ProtocolHBONE)
	c.eventually("it is published as one that takes plaintext", func() bool { return c.leaves(pod.UID) })
	if !c.isCaptured(pod.UID) {
		t.Error("it is reached in plaintext before it takes that")
	}
	c.registry.Published(report.Publication{Generation: c.registry.Captured().Generation(), Number: 6})
	c.shows("Pending: Withdrawing", v1alpha1.ProtocolTCP)
	c.eventually("it is published no more", func() bool { return !c.isCaptured(pod.UID) && c.leaves(pod.UID) })
	select {
	case reply := <-n.replies:
		t.Fatalf("%v before the mesh without it was published", reply)
	case <-time.After(calm):
	}
	c.registry.Published(report.Publication{Generation: c.registry.Captured().Generation(), Number: 7})
	select {
	case reply := <-n.replies:
		if reply.GetRelease().GetUid() != string(pod.UID) {
			t.Fatal(reply)
		}
	case <-time.After(patience):
		t.Fatal("not released")
	}
	n.report(pod, reportapi.CaptureState_NOT_ENROLLED)
	c.eventually("the object is gone", func() bool { return c.api.get("shop/cart") == nil })
	c.eventually("it leaves no more", func() bool { return !c.leaves(pod.UID) })
}

// A leader that takes over while a pod leaves has it take plaintext, as the one before.
func TestAPodLeavesWhileTheLeaderChanges(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, hangUp := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	n.report(pod, reportapi.CaptureState_WITHDRAWING)
	c.shows("Pending: Withdrawing", v1alpha1.ProtocolHBONE)
	c.eventually("it leaves", func() bool { return c.leaves(pod.UID) })
	hangUp()
	c.stop()

	c.lead()
	time.Sleep(calm)
	if !c.leaves(pod.UID) || !c.isCaptured(pod.UID) {
		t.Error("before its node has spoken, the next leader takes it for one that stays")
	}
	n, _ = c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.eventually("it stays", func() bool { return !c.leaves(pod.UID) && c.isCaptured(pod.UID) })
}

func TestNothingIsPublishedBeforeItIsRemembered(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	c.shows("Pending", v1alpha1.ProtocolTCP)
	c.api.set(func(s *apiServer) {
		s.refuse = func(string) *apierrors.StatusError { return apierrors.NewInternalError(errors.New("etcd is away")) }
	})
	n, _ := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	time.Sleep(calm)
	if c.isCaptured(pod.UID) {
		t.Error("published as HBONE, and a restart would not know it")
	}
	c.api.set(func(s *apiServer) { s.refuse = nil })
	c.eventually("captured", func() bool { return c.isCaptured(pod.UID) })
	if got := c.api.get("shop/cart").Status.Protocol; got != v1alpha1.ProtocolHBONE {
		t.Errorf("published, and remembered as %s", got)
	}
}

func TestRestartForgetsNothingAndWritesNothing(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, hangUp := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	hangUp()
	c.stop()
	c.api.written()

	c.lead()
	if !c.isCaptured(pod.UID) {
		t.Fatal("a restarted controller would publish it as TCP")
	}
	time.Sleep(calm)
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	// The node is back and has lost it: that is seen, and changes nothing else.
	n, _ = c.node("n1")
	if writes := c.api.written(); len(writes) > 0 {
		t.Errorf("writes %v although nothing happened", writes)
	}
	n.complete()
	c.shows("Pending: NotReported", v1alpha1.ProtocolHBONE)
	if !c.isCaptured(pod.UID) {
		t.Error("a lost report made it TCP")
	}
}

// A pod that runs on a node where no ztunnel is, from the beginning, is said to be outside of the mesh, though nothing happens any more.
func TestANodeThatNeverHadAZtunnel(t *testing.T) {
	pod := runningPod()
	c := newCluster(t)
	started := metav1.NewTime(c.now().Add(-aloneAfter + 2*time.Second))
	pod.Status.StartTime = &started
	c.create(pod)
	c.lead()
	c.shows("Pending: NotReported", v1alpha1.ProtocolTCP)
	c.shows("Failed: NoZtunnel", v1alpha1.ProtocolTCP)
	n, _ := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
}

func TestStaleAndBack(t *testing.T) {
	pod := runningPod()
	other := runningPod()
	other.Name, other.UID, other.Spec.NodeName = "pay", "uid-pay", "n2"
	c := newCluster(t, pod, other)
	c.lead()
	n, _ := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	heard := c.now()

	c.offset.Store(int64(time.Minute))
	c.shows("Stale since "+heard.UTC().Format("15:04:"), v1alpha1.ProtocolHBONE)
	w := c.api.get("shop/cart")
	if w.Status.State != v1alpha1.StateStale || w.Status.Since.Sub(heard).Abs() > 2*time.Second {
		t.Errorf("%+v, heard at %v", w.Status, heard)
	}
	if got := c.api.get("shop/pay").Status.State; got != v1alpha1.StatePending {
		t.Errorf("a pod of another node is %s", got)
	}
	if !c.isCaptured(pod.UID) {
		t.Error("silence made it TCP")
	}
	c.api.written()
	time.Sleep(2 * time.Second)
	if writes := c.api.written(); len(writes) > 0 {
		t.Errorf("writes %v while it stays silent", writes)
	}
	n.beat()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
}

func TestDeletedAndEditedObjectsAreMadeRight(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, _ := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	c.eventually("captured", func() bool { return c.isCaptured(pod.UID) })

	lost := atomic.Bool{}
	c.registry.OnCaptured(func(types.NamespacedName) { lost.Store(true) })
	uid := c.api.get("shop/cart").UID
	c.api.remove("shop/cart")
	c.eventually("made again", func() bool { w := c.api.get("shop/cart"); return w != nil && w.UID != uid })
	c.shows("Captured", v1alpha1.ProtocolHBONE)

	c.api.edit("shop/cart", func(w *v1alpha1.Workload) {
		w.Status.Protocol, w.Status.Summary, w.Spec.Identity = v1alpha1.ProtocolTCP, "fine", "spiffe://evil/ns/a/sa/b"
	})
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	c.eventually("the identity is right", func() bool {
		return c.api.get("shop/cart").Spec.Identity == "spiffe://cluster.local/ns/shop/sa/cart"
	})
	if lost.Load() || !c.isCaptured(pod.UID) {
		t.Error("it was published differently meanwhile")
	}
}

func TestPodMadeAnewStartsUncaptured(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, _ := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)

	next := runningPod()
	next.UID = "uid-next"
	c.delete(pod)
	c.create(next)
	c.eventually("the object is about the new pod", func() bool {
		w := c.api.get("shop/cart")
		return w != nil && owner(w) == next.UID
	})
	c.shows("Pending: NotReported", v1alpha1.ProtocolTCP)
	c.eventually("the old pod is forgotten", func() bool { return !c.isCaptured(pod.UID) })
	if c.isCaptured(next.UID) {
		t.Error("the new pod inherited HBONE")
	}
}

func TestPodMadeAnewWhileNobodyLooked(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, hangUp := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	hangUp()
	c.stop()

	next := runningPod()
	next.UID = "uid-next"
	c.delete(pod)
	c.create(next)
	c.lead()
	c.eventually("the object is about the new pod", func() bool {
		w := c.api.get("shop/cart")
		return w != nil && owner(w) == next.UID
	})
	c.shows("Pending: NotReported", v1alpha1.ProtocolTCP)
	if c.isCaptured(next.UID) {
		t.Error("the new pod inherited HBONE")
	}
}

func TestWhoHasAnObject(t *testing.T) {
	named := func(namespace, name, label string) *corev1.Pod {
		pod := runningPod()
		pod.Namespace, pod.Name, pod.UID = namespace, name, types.UID("uid-"+name)
		if label != "" {
			pod.Labels = map[string]string{Label: label}
		}
		return pod
	}
	host := named("shop", "host", "")
	host.Spec.HostNetwork = true
	c := newCluster(t, named("shop", "cart", ""), named("shop", "out", "none"), named("plain", "in", "ambient"),
		named("plain", "odd", "sidecar"), named("plain", "not", ""), host)
	c.lead()
	for key, want := range map[string]string{
		"shop/cart": "Pending: NotReported", "shop/out": "NotEnrolled", "shop/host": "NotEnrolled",
		"plain/in": "Pending: NotReported", "plain/odd": "Failed: UnknownDataplaneMode",
	} {
		c.eventually(key+" is "+want, func() bool { w := c.api.get(key); return w != nil && w.Status.Summary == want })
	}
	if c.api.get("plain/not") != nil {
		t.Error("a pod that nothing enrols has an object")
	}
	// The namespace's label decides from now on.
	c.label("plain", map[string]string{Label: "Ambient"})
	c.eventually("the namespace's mistake is shown", func() bool {
		w := c.api.get("plain/not")
		return w != nil && w.Status.Summary == "Failed: UnknownDataplaneMode"
	})
	c.label("plain", nil)
	c.eventually("the object is gone", func() bool { return c.api.get("plain/not") == nil })
}

func TestObjectWithoutItsPodIsDeleted(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	c.shows("Pending", v1alpha1.ProtocolTCP)
	c.stop()
	c.delete(pod)
	c.lead()
	c.eventually("the object is gone", func() bool { return c.api.get("shop/cart") == nil })
}

func TestWritesOnlyChanges(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	c.shows("Pending", v1alpha1.ProtocolTCP)
	if writes := c.api.written(); !slices.Equal(writes, []string{"POST", "STATUS"}) {
		t.Errorf("a new pod took %v", writes)
	}
	touched := pod.DeepCopy()
	touched.Annotations = map[string]string{"note": "nothing to us"}
	c.update(touched)
	n, _ := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	time.Sleep(calm)
	n.report(pod, reportapi.CaptureState_CAPTURED)
	time.Sleep(calm)
	// Once to captured; perhaps NotReported before, when the snapshot raced.
	if writes := c.api.written(); len(writes) > 2 {
		t.Errorf("captured took %v", writes)
	}
}

func TestVersionOfTheConfigurationIsPaced(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, _ := c.node("n1")
	version := func(v string) {
		n.report(pod, reportapi.CaptureState_CAPTURED, func(w *reportapi.WorkloadState) { w.ConfigVersion = v })
	}
	version("v1")
	n.complete()
	c.eventually("v1", func() bool { w := c.api.get("shop/cart"); return w != nil && w.Status.ConfigVersion == "v1" })
	c.api.written()
	for _, v := range []string{"v2", "v3", "v4"} {
		version(v)
	}
	time.Sleep(calm)
	if writes := c.api.written(); len(writes) > 0 {
		t.Errorf("writes %v within moments", writes)
	}
	c.offset.Store(int64(versionPace))
	n.beat()
	version("v5")
	c.eventually("v5", func() bool { return c.api.get("shop/cart").Status.ConfigVersion == "v5" })
}

func TestConflictsAreTriedAgain(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	var conflicts atomic.Int32
	c.api.set(func(s *apiServer) {
		s.refuse = func(verb string) *apierrors.StatusError {
			if verb == "STATUS" && conflicts.Add(1) <= 3 {
				return apierrors.NewConflict(resource, "cart", errors.New("injected"))
			}
			return nil
		}
	})
	c.lead()
	c.shows("Pending: NotReported", v1alpha1.ProtocolTCP)
}

func TestWithoutTheDefinitionNothingIsPublished(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.api.set(func(s *apiServer) { s.installed = false })
	c.start(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.reconciler.WaitSynced(ctx); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("wait: %v", err)
	}
	if !errors.Is(c.reconciler.Problem(), ErrNotInstalled) {
		t.Errorf("problem %v", c.reconciler.Problem())
	}
	c.api.set(func(s *apiServer) { s.installed = true })
	c.synced()
	c.shows("Pending: NotReported", v1alpha1.ProtocolTCP)
	c.eventually("no problem any more", func() bool { return c.reconciler.Problem() == nil })
}

func TestFollowerFollows(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, hangUp := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	hangUp()
	c.stop()
	c.api.written()

	c.start(false)
	c.synced()
	if !c.isCaptured(pod.UID) {
		t.Fatal("a follower would publish it as TCP")
	}
	protocol := func(p v1alpha1.Protocol) {
		c.api.edit("shop/cart", func(w *v1alpha1.Workload) { w.Status.Protocol = p })
		c.eventually("it goes with what the leader wrote", func() bool {
			return c.isCaptured(pod.UID) == (p == v1alpha1.ProtocolHBONE)
		})
	}
	protocol(v1alpha1.ProtocolTCP)
	protocol(v1alpha1.ProtocolHBONE)
	next := runningPod()
	next.UID = "uid-next"
	c.update(next)
	c.eventually("the pod that was there before is forgotten", func() bool { return !c.isCaptured(pod.UID) })
	if writes := c.api.written(); len(writes) > 0 {
		t.Errorf("a follower wrote %v", writes)
	}
}

func TestFollowerForgetsDeletedPods(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, hangUp := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	hangUp()
	c.stop()
	c.start(false)
	c.synced()
	c.delete(pod)
	c.eventually("it is forgotten", func() bool { return !c.isCaptured(pod.UID) })
}

func TestNewLeaderKnowsTheLastWordOfTheOneBefore(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	c.shows("Pending", v1alpha1.ProtocolTCP)
	c.stop()
	c.start(false)
	c.synced()
	// The old leader writes HBONE and dies, before our watch tells.
	c.api.set(func(s *apiServer) { s.held = true })
	c.api.edit("shop/cart", func(w *v1alpha1.Workload) {
		w.Status.Protocol, w.Status.State, w.Status.Summary = v1alpha1.ProtocolHBONE, v1alpha1.StateCaptured, "Captured"
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- c.reconciler.RunLeader(ctx) }()
	c.eventually("it knows", func() bool { return c.isCaptured(pod.UID) })
	time.Sleep(calm)
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	if !c.isCaptured(pod.UID) {
		t.Error("it took old knowledge for the truth")
	}
	c.api.set(func(s *apiServer) { s.held = false })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestNodeThatLostItsPowerWhileTheLabelWasRemoved(t *testing.T) {
	pod := runningPod()
	c := newCluster(t, pod)
	c.lead()
	n, hangUp := c.node("n1")
	n.report(pod, reportapi.CaptureState_CAPTURED)
	n.complete()
	c.shows("Captured", v1alpha1.ProtocolHBONE)
	hangUp()
	c.label("shop", nil)
	time.Sleep(calm)
	if c.api.get("shop/cart") == nil || !c.isCaptured(pod.UID) {
		t.Fatal("the label alone made it TCP")
	}
	// It comes back with a new namespace for the pod, and nothing to withdraw.
	n, _ = c.node("n1")
	n.report(pod, reportapi.CaptureState_NOT_ENROLLED)
	n.complete()
	c.eventually("it is no longer HBONE", func() bool { return !c.isCaptured(pod.UID) && c.api.get("shop/cart") == nil })
}
