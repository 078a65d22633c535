package watch

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/tools/cache"
)

const (
	// catchUpPoll is how often it is looked whether an informer is there yet:
	// usually it is already.
	catchUpPoll = 20 * time.Millisecond
	// catchUpRetry is how soon Kubernetes is asked again that did not answer.
	catchUpRetry = 500 * time.Millisecond
	// catchUpPatience is after how long there is another list.
	catchUpPatience = 2 * time.Second
)

// kept is one kind of object: what an informer holds, and what there is.
type kept struct {
	kind   string
	store  cache.Store
	source func(context.Context) (runtime.Object, error)
}

// CatchUp waits until policies and namespaces are no older here than they are in
// Kubernetes at this moment. Another replica may have published what this one has
// not heard of yet: who takes over from it may not take a prohibition back, be it
// for as long as a watch is late. What is late of all other objects leads to a
// wrong place at worst, where identities do not match.
func (s *Sources) CatchUp(ctx context.Context, logger *slog.Logger) error {
	for _, k := range s.restricting {
		if err := k.catchUp(ctx, logger); err != nil {
			return fmt.Errorf("catch up with %s: %w", k.kind, err)
		}
	}
	return nil
}

func (k kept) catchUp(ctx context.Context, logger *slog.Logger) error {
	for {
		there, version, err := k.list(ctx, logger)
		if err != nil {
			return err
		}
		late := k.late(there, version)
		for end := time.Now().Add(catchUpPatience); late != "" && time.Now().Before(end); late = k.late(there, version) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(catchUpPoll):
			}
		}
		if late == "" {
			return nil
		}
		// It may have been deleted since: a new list knows.
		logger.Warn("the watch is late: waiting for it", "kind", k.kind, "object", late)
	}
}

// list returns the versions of all objects that there are, by namespace and
// name, and that of the list.
func (k kept) list(ctx context.Context, logger *slog.Logger) (versions map[string]string, version string, err error) {
	for {
		var list runtime.Object
		if list, err = k.source(ctx); err == nil {
			return versionsOf(list)
		}
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		logger.Error("list what there is", "kind", k.kind, "error", err)
		select {
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case <-time.After(catchUpRetry):
		}
	}
}

func versionsOf(list runtime.Object) (versions map[string]string, version string, err error) {
	versions = make(map[string]string)
	err = meta.EachListItem(list, func(object runtime.Object) error {
		accessor, err := meta.Accessor(object)
		if err == nil {
			versions[cache.NewObjectName(accessor.GetNamespace(), accessor.GetName()).String()] = accessor.GetResourceVersion()
		}
		return err
	})
	if err != nil {
		return nil, "", err
	}
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		return nil, "", err
	}
	return versions, accessor.GetResourceVersion(), nil
}

// late names an object of which the informer does not have the listed version or
// a newer one, or which it still has though it is gone; empty if there is none.
func (k kept) late(there map[string]string, version string) string {
	held := make(map[string]string)
	for _, object := range k.store.List() {
		if accessor, err := meta.Accessor(object); err == nil {
			held[cache.NewObjectName(accessor.GetNamespace(), accessor.GetName()).String()] = accessor.GetResourceVersion()
		}
	}
	for name, listed := range there {
		if have, ok := held[name]; !ok || older(have, listed) {
			return name
		}
	}
	for name, have := range held {
		if _, ok := there[name]; !ok && older(have, version) {
			return name
		}
	}
	return ""
}

// older says whether a version comes before another. Versions that cannot be
// compared are not older if they are the same.
func older(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order < 0 || err != nil && a != b
}

func listFrom(source cache.ListerWatcher) func(context.Context) (runtime.Object, error) {
	return func(ctx context.Context) (runtime.Object, error) {
		// Version "": what is there now, not what a cache has of it.
		return cache.ToListerWatcherWithContext(source).ListWithContext(ctx, metav1.ListOptions{})
	}
}
