package watch

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

func namespace(name, version string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version}}
}

// behind is an informer's store, and what there is in Kubernetes.
func behind(store cache.Store, there ...*corev1.Namespace) kept {
	return kept{"namespaces", store, func(context.Context) (runtime.Object, error) {
		list := &corev1.NamespaceList{ListMeta: metav1.ListMeta{ResourceVersion: "100"}}
		for _, n := range there {
			list.Items = append(list.Items, *n)
		}
		return list, nil
	}}
}

func storeOf(t *testing.T, held ...*corev1.Namespace) cache.Store {
	t.Helper()
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	for _, n := range held {
		if err := store.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

func TestWhatIsLateIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		held, there []*corev1.Namespace
		arrives     func(cache.Store) error // nil: nothing is missing
	}{
		"nothing there":        {},
		"the same":             {held: []*corev1.Namespace{namespace("a", "9")}, there: []*corev1.Namespace{namespace("a", "9")}},
		"newer here":           {held: []*corev1.Namespace{namespace("a", "101")}, there: []*corev1.Namespace{namespace("a", "9")}},
		"made since the list":  {held: []*corev1.Namespace{namespace("b", "101")}},
		"not heard of":         {there: []*corev1.Namespace{namespace("a", "9")}, arrives: func(s cache.Store) error { return s.Add(namespace("a", "9")) }},
		"an older version":     {held: []*corev1.Namespace{namespace("a", "9")}, there: []*corev1.Namespace{namespace("a", "10")}, arrives: func(s cache.Store) error { return s.Update(namespace("a", "10")) }},
		"gone, and still here": {held: []*corev1.Namespace{namespace("a", "9")}, arrives: func(s cache.Store) error { return s.Delete(namespace("a", "9")) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := storeOf(t, c.held...)
				done := make(chan error, 1)
				go func() { done <- behind(store, c.there...).catchUp(t.Context(), slog.New(slog.DiscardHandler)) }()
				time.Sleep(10 * time.Second)
				if c.arrives != nil {
					select {
					case err := <-done:
						t.Fatalf("not waited for what is late: %v", err)
					default:
					}
					if err := c.arrives(store); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// One that is deleted after the list will never come: another list says so.
func TestAnObjectThatIsDeletedMeanwhileIsNotWaitedForForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := behind(storeOf(t), namespace("a", "9"))
		first := k.source
		lists := 0
		k.source = func(ctx context.Context) (runtime.Object, error) {
			if lists++; lists == 1 {
				return nil, errors.New("the API server is busy")
			}
			if lists == 2 {
				return first(ctx)
			}
			return &corev1.NamespaceList{ListMeta: metav1.ListMeta{ResourceVersion: "101"}}, nil
		}
		if err := k.catchUp(t.Context(), slog.New(slog.DiscardHandler)); err != nil || lists != 3 {
			t.Errorf("%d lists, %v", lists, err)
		}
	})
}

func TestCatchingUpEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := behind(storeOf(t), namespace("a", "9")).catchUp(ctx, slog.New(slog.DiscardHandler)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}
