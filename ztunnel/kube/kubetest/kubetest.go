// Package kubetest answers what package kube asks from client-go's fake
// clientset, where tests put objects and break things.
package kubetest

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Client is a kube.Client's double.
type Client struct {
	kubernetes.Interface
}

// Pod reads one pod.
func (c Client) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return c.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
}

// Namespace reads one namespace.
func (c Client) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	return c.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
}

// Pods lists and watches pods.
func (c Client) Pods(fields, labels string) cache.ListerWatcher {
	pods := c.CoreV1().Pods(metav1.NamespaceAll)
	return c.watch(fields, labels,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return pods.List(ctx, o) }, pods.Watch)
}

// Namespaces lists and watches namespaces.
func (c Client) Namespaces() cache.ListerWatcher {
	namespaces := c.CoreV1().Namespaces()
	return c.watch("", "",
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, o)
		}, namespaces.Watch)
}

// ConfigMaps lists and watches those of a namespace.
func (c Client) ConfigMaps(namespace, fields string) cache.ListerWatcher {
	maps := c.CoreV1().ConfigMaps(namespace)
	return c.watch(fields, "",
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return maps.List(ctx, o) }, maps.Watch)
}

func (c Client) watch(fields, labels string, list cache.ListWithContextFunc, watching cache.WatchFuncWithContext) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector, options.LabelSelector = fields, labels
			return list(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector, options.LabelSelector = fields, labels
			events, err := watching(ctx, options)
			if err != nil {
				return nil, err
			}
			// A server's answers are everyone's own; the fake's are the objects that it
			// keeps, and transforms of informers write to theirs.
			return watch.Filter(events, func(e watch.Event) (watch.Event, bool) {
				if e.Object != nil {
					e.Object = e.Object.DeepCopyObject()
				}
				return e, true
			}), nil
		},
	}, c.Interface)
}
