package status

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// The API server is asked for that many writes a second at most. A namespace of
// a hundred pods takes three hundred to be captured, and that shall take a
// second; a node that falls silent must not crowd out others for longer.
const (
	writesPerSecond = 200
	writesBurst     = 400
)

// Client reads and writes Workload objects.
type Client struct {
	rest  rest.Interface
	codec runtime.ParameterCodec
}

// NewClient returns a client with a rate limit of its own.
func NewClient(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register workload types: %w", err)
	}
	config = rest.CopyConfig(config)
	config.APIPath = "/apis"
	config.GroupVersion = &v1alpha1.GroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	// Custom resources speak no protobuf.
	config.ContentConfig.ContentType = runtime.ContentTypeJSON
	config.ContentConfig.AcceptContentTypes = runtime.ContentTypeJSON
	config.QPS, config.Burst, config.RateLimiter = writesPerSecond, writesBurst, nil
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make client for workloads: %w", err)
	}
	return &Client{rest: client, codec: runtime.NewParameterCodec(scheme)}, nil
}

func (c *Client) in(namespace string) *gentype.ClientWithList[*v1alpha1.Workload, *v1alpha1.WorkloadList] {
	return gentype.NewClientWithList("workloads", c.rest, c.codec, namespace,
		func() *v1alpha1.Workload { return &v1alpha1.Workload{} },
		func() *v1alpha1.WorkloadList { return &v1alpha1.WorkloadList{} })
}

func (c *Client) list(ctx context.Context, options metav1.ListOptions) (*v1alpha1.WorkloadList, error) {
	return c.in(metav1.NamespaceAll).List(ctx, options)
}

func (c *Client) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return c.in(metav1.NamespaceAll).Watch(ctx, options)
}
