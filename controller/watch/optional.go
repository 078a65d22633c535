package watch

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// reader is the part of a client that an informer uses.
type reader[L runtime.Object] interface {
	List(ctx context.Context, options metav1.ListOptions) (L, error)
	Watch(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error)
}

// optional is a kind that the cluster may not know.
type optional struct {
	*cache.ListWatch
}

// IsWatchListSemanticsUnSupported has informers list first: that tells whether the
// kind is known, a watch does not.
func (optional) IsWatchListSemanticsUnSupported() bool { return true }

// lookAgain is how soon a kind is seen that the cluster learns.
const lookAgain = 5 * time.Second

// anyVersion has a watch begin with all that is there.
const anyVersion = "0"

// Optionally makes a source of a kind: as long as the cluster does not know it, an
// empty list, and watches that end without having seen anything.
func Optionally[L runtime.Object](client reader[L], empty func() runtime.Object) cache.ListerWatcher {
	return optional{&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := client.List(ctx, options)
			if !unknown(err) {
				return list, err
			}
			none := empty()
			accessor, err := meta.ListAccessor(none)
			if err != nil {
				return nil, err
			}
			accessor.SetResourceVersion(anyVersion)
			return none, nil
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (apiwatch.Interface, error) {
			w, err := client.Watch(ctx, options)
			switch {
			case !unknown(err):
				return w, err
			case options.ResourceVersion != anyVersion:
				return nil, err // it was known until now: list again
			}
			return eventless(lookAgain), nil
		},
	}}
}

// unknown tells that the API server has no such kind.
func unknown(err error) bool { return apierrors.IsNotFound(err) }

// eventless is a watch that ends by itself after a time, without an event.
func eventless(d time.Duration) apiwatch.Interface {
	w := apiwatch.NewFakeWithOptions(apiwatch.FakeOptions{})
	timer := time.AfterFunc(d, w.Stop)
	return &eventlessWatch{FakeWatcher: w, timer: timer}
}

type eventlessWatch struct {
	*apiwatch.FakeWatcher
	timer *time.Timer
}

// Stop ends it now.
func (s *eventlessWatch) Stop() {
	s.timer.Stop()
	s.FakeWatcher.Stop()
}
