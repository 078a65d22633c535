package policy

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// The API server is asked for that many writes of status a second at most: a
// change of a label may concern every policy there is, and can wait.
const (
	writesPerSecond = 50
	writesBurst     = 100
)

// Client reads policies, and writes their status.
type Client struct {
	rest  rest.Interface
	codec runtime.ParameterCodec
	// stored reads objects as they are stored, whatever version of Ambit wrote them.
	stored dynamic.Interface
}

// NewClient returns a client with a rate limit of its own.
func NewClient(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register policy types: %w", err)
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
		return nil, fmt.Errorf("make client for policies: %w", err)
	}
	stored, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for policies: %w", err)
	}
	return &Client{rest: client, codec: runtime.NewParameterCodec(scheme), stored: stored}, nil
}

func (c *Client) peerAuthentications(namespace string) *gentype.ClientWithList[*v1alpha1.PeerAuthentication, *v1alpha1.PeerAuthenticationList] {
	return gentype.NewClientWithList("peerauthentications", c.rest, c.codec, namespace,
		func() *v1alpha1.PeerAuthentication { return &v1alpha1.PeerAuthentication{} },
		func() *v1alpha1.PeerAuthenticationList { return &v1alpha1.PeerAuthenticationList{} })
}

func (c *Client) authorizationPolicies(namespace string) *gentype.ClientWithList[*v1alpha1.AuthorizationPolicy, *v1alpha1.AuthorizationPolicyList] {
	return gentype.NewClientWithList("authorizationpolicies", c.rest, c.codec, namespace,
		func() *v1alpha1.AuthorizationPolicy { return &v1alpha1.AuthorizationPolicy{} },
		func() *v1alpha1.AuthorizationPolicyList { return &v1alpha1.AuthorizationPolicyList{} })
}

func (c *Client) egressPolicies(namespace string) *gentype.ClientWithList[*v1alpha1.EgressPolicy, *v1alpha1.EgressPolicyList] {
	return gentype.NewClientWithList("egresspolicies", c.rest, c.codec, namespace,
		func() *v1alpha1.EgressPolicy { return &v1alpha1.EgressPolicy{} },
		func() *v1alpha1.EgressPolicyList { return &v1alpha1.EgressPolicyList{} })
}

func (c *Client) requestAuthentications(namespace string) *gentype.ClientWithList[*v1alpha1.RequestAuthentication, *v1alpha1.RequestAuthenticationList] {
	return gentype.NewClientWithList("requestauthentications", c.rest, c.codec, namespace,
		func() *v1alpha1.RequestAuthentication { return &v1alpha1.RequestAuthentication{} },
		func() *v1alpha1.RequestAuthenticationList { return &v1alpha1.RequestAuthenticationList{} })
}

// updateStatus writes a policy's status, and returns the object as it is then.
// It fails if the object has changed since it was read.
func (c *Client) updateStatus(ctx context.Context, o object, status v1alpha1.PolicyStatus) (object, error) {
	switch o := o.(type) {
	case *v1alpha1.PeerAuthentication:
		next := o.DeepCopy()
		next.Status = status
		return c.peerAuthentications(o.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	case *v1alpha1.AuthorizationPolicy:
		next := o.DeepCopy()
		next.Status = status
		return c.authorizationPolicies(o.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	case *v1alpha1.RequestAuthentication:
		next := o.DeepCopy()
		next.Status = status
		return c.requestAuthentications(o.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	case *v1alpha1.EgressPolicy:
		next := o.DeepCopy()
		next.Status = status
		return c.egressPolicies(o.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	}
	return nil, fmt.Errorf("%T is no policy", o)
}
