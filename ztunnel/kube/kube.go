// Package kube reads from Kubernetes what a node has to know: pods, namespaces,
// and the mesh's root certificates.
//
// It takes the place of client-go's clientset, which knows every kind of object
// that there is: 30 MiB of program, two thirds of which would be in memory on
// every node.
//
// Nothing is written. What objects mean is for those who watch.
package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Client of the API server.
type Client struct {
	rest rest.Interface
}

// New returns a client that speaks protobuf.
func New(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register Kubernetes types: %w", err)
	}
	config = rest.CopyConfig(config)
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make Kubernetes client: %w", err)
	}
	return &Client{rest: client}, nil
}

// Pod reads one pod. The error is Kubernetes' own, such as NotFound.
func (c *Client) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	err := c.rest.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(pod)
	return pod, err
}

// Namespace reads one namespace. The error is Kubernetes' own, such as NotFound.
func (c *Client) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	namespace := &corev1.Namespace{}
	err := c.rest.Get().Resource("namespaces").Name(name).Do(ctx).Into(namespace)
	return namespace, err
}

// Pods lists and watches the pods of all namespaces that selectors choose.
func (c *Client) Pods(fields, labels string) cache.ListerWatcher {
	return c.watch("pods", metav1.NamespaceAll, fields, labels)
}

// Namespaces lists and watches all namespaces.
func (c *Client) Namespaces() cache.ListerWatcher {
	return c.watch("namespaces", metav1.NamespaceAll, "", "")
}

// ConfigMaps lists and watches those of a namespace that a field selector chooses.
func (c *Client) ConfigMaps(namespace, fields string) cache.ListerWatcher {
	return c.watch("configmaps", namespace, fields, "")
}

func (c *Client) watch(resource, namespace, fields, labels string) cache.ListerWatcher {
	return cache.NewFilteredListWatchFromClient(c.rest, resource, namespace, func(options *metav1.ListOptions) {
		options.FieldSelector, options.LabelSelector = fields, labels
	})
}
