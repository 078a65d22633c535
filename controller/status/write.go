package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// takeOverRetry is how soon a failed list is tried again.
const takeOverRetry = 2 * time.Second

// ErrNotInstalled: the API server does not know Workload objects.
var ErrNotInstalled = errors.New("WorkloadsNotInstalled: CustomResourceDefinition workloads.ambit.mesh is missing; " +
	"apply it (`ambit install` does), nothing is published before it is there")

// written remembers the last written version of objects until the informer has
// seen it: what was decided must not be decided again on older knowledge.
type written struct {
	mu     sync.Mutex
	latest map[types.NamespacedName]*v1alpha1.Workload
	times  map[types.NamespacedName]time.Time
}

func (m *written) put(w *v1alpha1.Workload, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latest[keyOf(w)] = w
	if m.times == nil {
		m.times = map[types.NamespacedName]time.Time{}
	}
	m.times[keyOf(w)] = now
}

// at returns when an object was last written.
func (m *written) at(key types.NamespacedName) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.times[key]
}

// seen drops what the informer has caught up with.
func (m *written) seen(w *v1alpha1.Workload) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if latest, ok := m.latest[keyOf(w)]; ok && !newer(latest, w) {
		delete(m.latest, keyOf(w))
	}
}

// gone drops an object that was deleted.
func (m *written) gone(w *v1alpha1.Workload) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if latest, ok := m.latest[keyOf(w)]; ok && latest.UID == w.UID {
		delete(m.latest, keyOf(w))
	}
	delete(m.times, keyOf(w))
}

// pick returns the newer of what was written and what the informer has.
func (m *written) pick(key types.NamespacedName, informed *v1alpha1.Workload) *v1alpha1.Workload {
	m.mu.Lock()
	defer m.mu.Unlock()
	if latest, ok := m.latest[key]; ok && (informed == nil || newer(latest, informed)) {
		return latest
	}
	return informed
}

// newer says whether a has a later version than b. Versions that cannot be
// compared count as seen: a conflict then says so.
func newer(a, b *v1alpha1.Workload) bool {
	order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion)
	return err == nil && order > 0
}

// present returns the Workload of a name as last known, nil if there is none.
func (r *Reconciler) present(key types.NamespacedName) *v1alpha1.Workload {
	var informed *v1alpha1.Workload
	if object, found, err := r.workloads.GetStore().GetByKey(key.String()); err == nil && found {
		informed, _ = object.(*v1alpha1.Workload)
	}
	return r.written.pick(key, informed)
}

// takeOver reads every object anew, so that a new leader decides on nothing
// older than the last word of the one before. It reports whether it could
// before ctx ended.
func (r *Reconciler) takeOver(ctx context.Context) bool {
	for {
		list, err := r.cfg.Client.list(ctx, metav1.ListOptions{})
		r.note(err)
		if err == nil {
			for i := range list.Items {
				w := &list.Items[i]
				informed := r.present(keyOf(w))
				if informed == nil || newer(w, informed) {
					r.written.put(w, time.Time{})
				}
				r.seed(w)
			}
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(takeOverRetry):
		}
	}
}

// owner returns the UID of the pod that an object is about.
func owner(w *v1alpha1.Workload) types.UID {
	for _, reference := range w.OwnerReferences {
		if reference.Kind == "Pod" && reference.APIVersion == "v1" {
			return reference.UID
		}
	}
	return ""
}

// create makes the object of a pod; nil without an error in a namespace that is
// being deleted.
func (r *Reconciler) create(ctx context.Context, pod *corev1.Pod, spec v1alpha1.WorkloadSpec) (*v1alpha1.Workload, error) {
	w, err := r.cfg.Client.in(pod.Namespace).Create(ctx, &v1alpha1.Workload{
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Spec: spec,
	}, metav1.CreateOptions{})
	r.count("create", err)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil, nil
	}
	return r.remember(w, "create", err)
}

func (r *Reconciler) update(ctx context.Context, w *v1alpha1.Workload) (*v1alpha1.Workload, error) {
	w, err := r.cfg.Client.in(w.Namespace).Update(ctx, w, metav1.UpdateOptions{})
	r.count("update", err)
	return r.remember(w, "update", err)
}

func (r *Reconciler) updateStatus(ctx context.Context, w *v1alpha1.Workload) (*v1alpha1.Workload, error) {
	w, err := r.cfg.Client.in(w.Namespace).UpdateStatus(ctx, w, metav1.UpdateOptions{})
	r.count("status", err)
	return r.remember(w, "update status of", err)
}

func (r *Reconciler) remember(w *v1alpha1.Workload, verb string, err error) (*v1alpha1.Workload, error) {
	if err != nil {
		return nil, fmt.Errorf("%s workload: %w", verb, err)
	}
	r.written.put(w, r.cfg.Now())
	return w, nil
}

// delete removes this very object, not one that was made since.
func (r *Reconciler) delete(ctx context.Context, w *v1alpha1.Workload) error {
	err := r.cfg.Client.in(w.Namespace).Delete(ctx, w.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &w.UID}})
	r.count("delete", err)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete workload: %w", err)
	}
	r.written.gone(w)
	return nil
}

func (r *Reconciler) count(kind string, err error) {
	result := "ok"
	if err != nil {
		result = string(apierrors.ReasonForError(err))
		if result == "" {
			result = "error"
		}
	}
	r.writes.WithLabelValues(kind, result).Inc()
}

// severity of a failed write: to have decided on old knowledge is ordinary, and
// that the API server has no Workload objects at all is said once, by note.
func severity(err error) slog.Level {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// newInformer reads all Workload objects; every answer of the API server tells
// whether it knows them.
func (r *Reconciler) newInformer() cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := r.cfg.Client.list(ctx, options)
			r.note(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			events, err := r.cfg.Client.watch(ctx, options)
			r.note(err)
			return events, err
		},
	}, &v1alpha1.Workload{}, 0, cache.Indexers{})
}

// Problem returns why Workload objects cannot be read, nil when they can.
func (r *Reconciler) Problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

// note keeps and logs what the API server says of Workload objects as such.
func (r *Reconciler) note(err error) {
	switch {
	case errors.Is(err, context.Canceled):
		return
	case apierrors.IsNotFound(err) || meta.IsNoMatchError(err):
		err = ErrNotInstalled
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		// The reflector lists anew.
		return
	case err != nil:
		err = fmt.Errorf("read Workload objects: %w", err)
	}
	r.mu.Lock()
	changed := (err == nil) != (r.problem == nil) || err != nil && err.Error() != r.problem.Error()
	r.problem = err
	r.mu.Unlock()
	switch {
	case !changed:
	case err != nil:
		r.cfg.Logger.Error("workload objects", "error", err)
	default:
		r.cfg.Logger.Info("workload objects are readable")
	}
}
