package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/report"
)

const (
	// workers that write at once; the rate limit is what paces them.
	workers = 8
	// A failed write is tried again after firstRetry, then less and less often.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 30 * time.Second
	// lookAgain is how often every object is compared although nothing happened.
	lookAgain = 5 * time.Minute
	// versionPace is how often a mere change of the configuration's version is
	// written: a busy mesh has several a second, for every pod.
	versionPace = 15 * time.Second
)

// NodePods knows the pods of a node.
type NodePods interface {
	PodsOnNode(node string) []*corev1.Pod
}

// Config is what a [Reconciler] needs.
type Config struct {
	Client     *Client
	Pods       coreinformers.PodInformer
	Namespaces coreinformers.NamespaceInformer
	NodePods   NodePods
	Registry   *report.Registry
	// TrustDomain of the identities that are shown.
	TrustDomain string
	// Now is the clock, time.Now when nil.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Reconciler keeps the Workload objects.
type Reconciler struct {
	cfg       Config
	workloads cache.SharedIndexInformer
	written   *written
	writes    *prometheus.CounterVec
	waypoints waypoints
	// seeded says that every Workload object has been given to the registry.
	seeded cache.ResourceEventHandlerRegistration
	queue  atomic.Pointer[queue] // nil unless leading
	// tookOver is closed once this process decides on nothing older than the last
	// word of the leader before it.
	tookOver chan struct{}

	mu      sync.Mutex
	problem error // guarded by mu
}

type queue struct {
	workqueue.TypedRateLimitingInterface[types.NamespacedName]
}

// New returns a reconciler; call it before the informers start.
func New(cfg Config) (*Reconciler, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Reconciler{
		cfg:      cfg,
		tookOver: make(chan struct{}),
		written:  &written{latest: map[types.NamespacedName]*v1alpha1.Workload{}},
		problem:  errors.New("Workload objects have not been read yet"),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_workload_writes_total", Help: "Writes of Workload objects, by kind and result.",
		}, []string{"kind", "result"}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(r.writes)
	}
	cfg.Registry.OnObserved(r.enqueue)
	cfg.Registry.OnNode(func(node string) {
		for _, pod := range cfg.NodePods.PodsOnNode(node) {
			r.enqueue(keyOf(pod))
		}
	})
	r.workloads = r.newInformer()
	return r, r.listen()
}

// listen registers what happens on events.
func (r *Reconciler) listen() (err error) {
	if r.seeded, err = r.workloads.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { r.workloadChanged(object) },
		UpdateFunc: func(_, object any) { r.workloadChanged(object) },
		DeleteFunc: r.workloadDeleted,
	}); err != nil {
		return fmt.Errorf("listen to workloads: %w", err)
	}
	if _, err = r.cfg.Pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { r.enqueue(keyOf(object)) },
		UpdateFunc: r.podChanged,
		DeleteFunc: r.podDeleted,
	}); err != nil {
		return fmt.Errorf("listen to pods: %w", err)
	}
	if _, err = r.cfg.Namespaces.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { r.namespaceChanged(nil, object) },
		UpdateFunc: func(old, object any) {
			r.namespaceChanged(old, object)
		},
	}); err != nil {
		return fmt.Errorf("listen to namespaces: %w", err)
	}
	return nil
}

// Run reads the Workload objects and seeds the captured set with them, until
// ctx ends. Every replica runs it.
func (r *Reconciler) Run(ctx context.Context) error {
	r.workloads.RunWithContext(ctx)
	return nil
}

// WaitSynced returns when the captured set is as the Workload objects have it:
// before, no publication may be made of it.
func (r *Reconciler) WaitSynced(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), r.seeded.HasSynced) {
		return fmt.Errorf("read Workload objects: %w", errors.Join(ctx.Err(), r.Problem()))
	}
	return nil
}

// RunLeader writes until ctx ends. Only the leader runs it; a process that lost
// leadership has to end, it may not lead again.
func (r *Reconciler) RunLeader(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), r.seeded.HasSynced, r.cfg.Pods.Informer().HasSynced, r.cfg.Namespaces.Informer().HasSynced) {
		return nil
	}
	if !r.takeOver(ctx) {
		return nil
	}
	close(r.tookOver)
	q := &queue{workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](firstRetry, lastRetry))}
	r.queue.Store(q)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() { r.work(ctx, q) })
	}
	group.Go(func() { r.lookAgain(ctx) })
	<-ctx.Done()
	r.queue.Store(nil)
	q.ShutDown()
	group.Wait()
	return nil
}

// TakenOver is closed once the captured set is no older than the last word of the
// leader before this one: until then it may not be published to anyone.
func (r *Reconciler) TakenOver() <-chan struct{} { return r.tookOver }

func (r *Reconciler) work(ctx context.Context, q *queue) {
	for {
		key, shutdown := q.Get()
		if shutdown {
			return
		}
		again, err := r.reconcile(ctx, key)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			r.cfg.Logger.Log(ctx, severity(err), "keep workload", "namespace", key.Namespace, "pod", key.Name, "error", err)
			q.AddRateLimited(key)
		default:
			q.Forget(key)
			if again > 0 {
				q.AddAfter(key, again)
			}
		}
		q.Done(key)
	}
}

func (r *Reconciler) lookAgain(ctx context.Context) {
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	for {
		r.enqueueAll()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (r *Reconciler) enqueue(key types.NamespacedName) {
	if q := r.queue.Load(); q != nil && key.Name != "" {
		q.Add(key)
	}
}

func (r *Reconciler) enqueueAll() {
	for _, object := range r.cfg.Pods.Informer().GetStore().List() {
		r.enqueue(keyOf(object))
	}
	for _, object := range r.workloads.GetStore().List() {
		r.enqueue(keyOf(object))
	}
}

func (r *Reconciler) podChanged(old, object any) {
	before, ok := old.(*corev1.Pod)
	after, ok2 := object.(*corev1.Pod)
	if ok && ok2 && before.UID != after.UID {
		// A deletion and a creation that the informer saw as one.
		r.cfg.Registry.Forget(before.UID)
	}
	r.enqueue(keyOf(object))
}

func (r *Reconciler) podDeleted(object any) {
	object = lastKnown(object)
	if pod, ok := object.(*corev1.Pod); ok {
		r.cfg.Registry.Forget(pod.UID)
	}
	r.enqueue(keyOf(object))
}

func (r *Reconciler) namespaceChanged(old, object any) {
	namespace, ok := object.(*corev1.Namespace)
	if !ok {
		return
	}
	if before, ok := old.(*corev1.Namespace); ok && before.Labels[Label] == namespace.Labels[Label] {
		if _, had := before.Labels[Label]; had == hasLabel(namespace) {
			return
		}
	}
	pods, err := r.cfg.Pods.Lister().Pods(namespace.Name).List(labels.Everything())
	if err != nil {
		return
	}
	for _, pod := range pods {
		r.enqueue(keyOf(pod))
	}
}

func hasLabel(namespace *corev1.Namespace) bool {
	_, ok := namespace.Labels[Label]
	return ok
}

func (r *Reconciler) workloadChanged(object any) {
	if w, ok := object.(*v1alpha1.Workload); ok {
		r.written.seen(w)
		r.seed(r.written.pick(keyOf(w), w))
		r.enqueue(keyOf(w))
	}
}

func (r *Reconciler) workloadDeleted(object any) {
	w, ok := lastKnown(object).(*v1alpha1.Workload)
	if !ok {
		return
	}
	r.written.gone(w)
	// What was read after the pod's deletion must not stay. While the pod is
	// there it stays as captured as it was: the object is made again.
	if r.cfg.Pods.Informer().HasSynced() && !r.podIs(keyOf(w), owner(w)) {
		r.cfg.Registry.Forget(owner(w))
	}
	r.enqueue(keyOf(w))
}

func (r *Reconciler) podIs(key types.NamespacedName, uid types.UID) bool {
	pod, err := r.cfg.Pods.Lister().Pods(key.Namespace).Get(key.Name)
	return err == nil && pod.UID == uid
}

// seed hands what an object says to the registry.
func (r *Reconciler) seed(w *v1alpha1.Workload) {
	if uid := owner(w); uid != "" && w.Status.Protocol != "" {
		r.cfg.Registry.Seed(keyOf(w), uid, says(w))
	}
}

// says is what an object says of how its pod is published.
func says(w *v1alpha1.Workload) report.Remembered {
	return report.Remembered{HBONE: w.Status.Protocol == v1alpha1.ProtocolHBONE, Leaving: word(w.Status.Reason) == withdrawing}
}

func lastKnown(object any) any {
	if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		return tombstone.Obj
	}
	return object
}

func keyOf(object any) types.NamespacedName {
	name, err := cache.ObjectToName(object)
	if err != nil {
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: name.Namespace, Name: name.Name}
}
