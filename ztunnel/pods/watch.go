package pods

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// mirrorAnnotation of a static pod's object holds the UID by which the kubelet
// and its CNI plugins know the pod.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// watch holds what Kubernetes says: this node's pods, all namespaces, and which
// pods of the cluster bear an enrolling label of their own.
type watch struct {
	pods *Pods

	local      cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	labelled   cache.SharedIndexInformer
	// told tell whether what was listed at first has been learnt.
	told []cache.InformerSynced
	// enrolmentChanged has an element when the enrolment file may have to change.
	enrolmentChanged chan struct{}
}

func newWatch(p *Pods) *watch {
	client := p.config.Client
	onNode := fields.OneTermEqualSelector("spec.nodeName", p.config.Node).String()
	return &watch{
		pods:             p,
		local:            newInformer(client.Pods(onNode, ""), &corev1.Pod{}),
		labelled:         newInformer(client.Pods("", DataplaneModeLabel+"="+modeAmbient), &corev1.Pod{}),
		namespaces:       newInformer(client.Namespaces(), &corev1.Namespace{}),
		enrolmentChanged: make(chan struct{}, 1),
	}
}

func newInformer(objects cache.ListerWatcher, of runtime.Object) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(objects, of, 0, cache.Indexers{})
}

// start begins to watch; what it starts has ended when the group has, after the context.
func (w *watch) start(ctx context.Context, group *sync.WaitGroup) error {
	if err := w.subscribe(); err != nil {
		return err
	}
	for _, informer := range []cache.SharedIndexInformer{w.local, w.namespaces, w.labelled} {
		group.Go(func() { informer.RunWithContext(ctx) })
	}
	return nil
}

func (w *watch) subscribe() error {
	if err := w.local.SetTransform(dropManagedFields); err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	if err := w.labelled.SetTransform(onlyMetadata); err != nil {
		return fmt.Errorf("watch labelled pods: %w", err)
	}
	subscriptions := []struct {
		to        cache.SharedIndexInformer
		onPresent func(any)
		onDelete  func(any)
	}{
		{w.local, w.podPresent, w.podDeleted},
		{w.namespaces, w.namespaceChanged, w.namespaceChanged},
		{w.labelled, func(any) { w.signal() }, func(any) { w.signal() }},
	}
	for _, s := range subscriptions {
		registration, err := s.to.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    s.onPresent,
			UpdateFunc: func(_, object any) { s.onPresent(object) },
			DeleteFunc: s.onDelete,
		})
		if err != nil {
			return fmt.Errorf("watch Kubernetes: %w", err)
		}
		w.told = append(w.told, registration.HasSynced)
	}
	return nil
}

// wait returns true when everything is known, false when the context ended before.
func (w *watch) wait(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), w.told...)
}

func dropManagedFields(object any) (any, error) {
	if pod, ok := object.(*corev1.Pod); ok {
		pod.ManagedFields = nil
	}
	return object, nil
}

// onlyMetadata keeps of a pod that may be on any node what its namespace needs.
func onlyMetadata(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, Labels: pod.Labels,
	}}, nil
}

func (w *watch) podPresent(object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName != w.pods.config.Node {
		return
	}
	w.pods.learn(pod, w.namespace(pod.Namespace))
}

func (w *watch) podDeleted(object any) {
	if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = tombstone.Obj
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	w.pods.mu.Lock()
	defer w.pods.mu.Unlock()
	if worker, ok := w.pods.workers[string(pod.UID)]; ok {
		worker.facts.alive = false
		worker.wake()
		w.pods.signal()
	}
}

// namespaceChanged has all pods of the namespace judged anew; of every
// namespace, if it is the mesh's own.
func (w *watch) namespaceChanged(object any) {
	w.signal()
	if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = tombstone.Obj
	}
	namespace, ok := object.(*corev1.Namespace)
	if !ok {
		return
	}
	for _, object := range w.local.GetStore().List() {
		if pod, ok := object.(*corev1.Pod); ok && (pod.Namespace == namespace.Name || namespace.Name == SystemNamespace) {
			w.podPresent(pod)
		}
	}
}

// removing tells whether the mesh is being removed.
func (w *watch) removing() bool {
	namespace := w.namespace(SystemNamespace)
	return namespace != nil && namespace.Labels[RemovingLabel] == "true"
}

// namespace returns nil for one that is not known.
func (w *watch) namespace(name string) *corev1.Namespace {
	object, ok, err := w.namespaces.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	namespace, _ := object.(*corev1.Namespace)
	return namespace
}

// pod returns nil for one that is not known.
func (w *watch) pod(namespace, name string) *corev1.Pod {
	object, ok, err := w.local.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	pod, _ := object.(*corev1.Pod)
	return pod
}

// has tells whether Kubernetes knows a pod of this node by its UID.
func (w *watch) has(uid string) bool {
	for _, object := range w.local.GetStore().List() {
		if pod, ok := object.(*corev1.Pod); ok && string(pod.UID) == uid && !terminal(pod) {
			return true
		}
	}
	return false
}

func (w *watch) signal() {
	select {
	case w.enrolmentChanged <- struct{}{}:
	default:
	}
}

// learn takes over what Kubernetes says of a pod.
func (p *Pods) learn(pod *corev1.Pod, namespace *corev1.Namespace) *worker {
	alive := !terminal(pod)
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.workers[string(pod.UID)]
	if !ok && !alive {
		return nil
	}
	if w = p.ensureLocked(string(pod.UID)); w == nil {
		return nil
	}
	f := &w.facts
	before := *f
	f.namespace, f.name, f.serviceAccount = pod.Namespace, pod.Name, serviceAccount(pod)
	f.alive, f.remembered = alive, false
	f.hostNetwork = pod.Spec.HostNetwork
	f.lastSeen = lastSeen(pod)
	f.ips = podIPs(pod)
	f.dnsCapture = pod.Annotations[DNSCaptureAnnotation]
	f.mode, f.reason = p.enrolmentOf(pod, namespace)
	if before.alive != f.alive || before.mode != f.mode || before.reason != f.reason || before.lastSeen != f.lastSeen || len(before.ips) != len(f.ips) || before.name != f.name {
		w.wake()
	}
	if before.alive != f.alive || before.mode != f.mode {
		p.requestSave()
	}
	return w
}

func serviceAccount(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}
