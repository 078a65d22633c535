// Package gatewayapi reads the objects of the Gateway API, and writes their status.
//
//	client.go    one client for all kinds
//
// A cluster may know some of these kinds, or none: as long as one is not known,
// there are no objects of it, and once its definition is installed they are there.
//
// What the objects mean is translate's job, what becomes of Gateways gateway's.
package gatewayapi

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/watch"
)

const (
	// The API server is asked for that many writes of status a second at most.
	writesPerSecond = 50
	writesBurst     = 100
)

// Controller is what Ambit is called in the status of these objects.
const Controller gateway.GatewayController = "ambit.mesh/waypoint"

// Client reads objects, and writes their status.
type Client struct {
	rest  rest.Interface
	codec runtime.ParameterCodec
}

// NewClient returns a client with a rate limit of its own.
func NewClient(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := gateway.Install(scheme); err != nil {
		return nil, fmt.Errorf("register Gateway API types: %w", err)
	}
	config = rest.CopyConfig(config)
	config.APIPath = "/apis"
	config.GroupVersion = &schema.GroupVersion{Group: gateway.GroupName, Version: gateway.GroupVersion.Version}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	// Custom resources speak no protobuf.
	config.ContentConfig.ContentType = runtime.ContentTypeJSON
	config.ContentConfig.AcceptContentTypes = runtime.ContentTypeJSON
	config.QPS, config.Burst, config.RateLimiter = writesPerSecond, writesBurst, nil
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make client for the Gateway API: %w", err)
	}
	return &Client{rest: client, codec: runtime.NewParameterCodec(scheme)}, nil
}

// Sources of all kinds, none of which needs to be known to the cluster.
func (c *Client) Sources() watch.GatewayAPI {
	return watch.GatewayAPI{
		GatewayClasses: watch.Optionally(c.GatewayClasses(), func() runtime.Object { return &gateway.GatewayClassList{} }),
		Gateways:       watch.Optionally(c.Gateways(metav1.NamespaceAll), func() runtime.Object { return &gateway.GatewayList{} }),
		HTTPRoutes:     watch.Optionally(c.HTTPRoutes(metav1.NamespaceAll), func() runtime.Object { return &gateway.HTTPRouteList{} }),
		GRPCRoutes:     watch.Optionally(c.GRPCRoutes(metav1.NamespaceAll), func() runtime.Object { return &gateway.GRPCRouteList{} }),
		TLSRoutes:      watch.Optionally(c.TLSRoutes(metav1.NamespaceAll), func() runtime.Object { return &gateway.TLSRouteList{} }),
		TCPRoutes:      watch.Optionally(c.TCPRoutes(metav1.NamespaceAll), func() runtime.Object { return &gateway.TCPRouteList{} }),
	}
}

// GatewayClasses of the cluster.
func (c *Client) GatewayClasses() *gentype.ClientWithList[*gateway.GatewayClass, *gateway.GatewayClassList] {
	return gentype.NewClientWithList("gatewayclasses", c.rest, c.codec, "",
		func() *gateway.GatewayClass { return &gateway.GatewayClass{} }, func() *gateway.GatewayClassList { return &gateway.GatewayClassList{} })
}

// Gateways of a namespace.
func (c *Client) Gateways(namespace string) *gentype.ClientWithList[*gateway.Gateway, *gateway.GatewayList] {
	return gentype.NewClientWithList("gateways", c.rest, c.codec, namespace,
		func() *gateway.Gateway { return &gateway.Gateway{} }, func() *gateway.GatewayList { return &gateway.GatewayList{} })
}

// HTTPRoutes of a namespace.
func (c *Client) HTTPRoutes(namespace string) *gentype.ClientWithList[*gateway.HTTPRoute, *gateway.HTTPRouteList] {
	return gentype.NewClientWithList("httproutes", c.rest, c.codec, namespace,
		func() *gateway.HTTPRoute { return &gateway.HTTPRoute{} }, func() *gateway.HTTPRouteList { return &gateway.HTTPRouteList{} })
}

// GRPCRoutes of a namespace.
func (c *Client) GRPCRoutes(namespace string) *gentype.ClientWithList[*gateway.GRPCRoute, *gateway.GRPCRouteList] {
	return gentype.NewClientWithList("grpcroutes", c.rest, c.codec, namespace,
		func() *gateway.GRPCRoute { return &gateway.GRPCRoute{} }, func() *gateway.GRPCRouteList { return &gateway.GRPCRouteList{} })
}

// TLSRoutes of a namespace.
func (c *Client) TLSRoutes(namespace string) *gentype.ClientWithList[*gateway.TLSRoute, *gateway.TLSRouteList] {
	return gentype.NewClientWithList("tlsroutes", c.rest, c.codec, namespace,
		func() *gateway.TLSRoute { return &gateway.TLSRoute{} }, func() *gateway.TLSRouteList { return &gateway.TLSRouteList{} })
}

// TCPRoutes of a namespace.
func (c *Client) TCPRoutes(namespace string) *gentype.ClientWithList[*gateway.TCPRoute, *gateway.TCPRouteList] {
	return gentype.NewClientWithList("tcproutes", c.rest, c.codec, namespace,
		func() *gateway.TCPRoute { return &gateway.TCPRoute{} }, func() *gateway.TCPRouteList { return &gateway.TCPRouteList{} })
}

// UpdateRouteStatus writes the status of a route of any kind. It fails if the
// object has changed since it was read.
func (c *Client) UpdateRouteStatus(ctx context.Context, route metav1.Object) (err error) {
	switch r := route.(type) {
	case *gateway.HTTPRoute:
		_, err = c.HTTPRoutes(r.Namespace).UpdateStatus(ctx, r, metav1.UpdateOptions{})
	case *gateway.GRPCRoute:
		_, err = c.GRPCRoutes(r.Namespace).UpdateStatus(ctx, r, metav1.UpdateOptions{})
	case *gateway.TLSRoute:
		_, err = c.TLSRoutes(r.Namespace).UpdateStatus(ctx, r, metav1.UpdateOptions{})
	case *gateway.TCPRoute:
		_, err = c.TCPRoutes(r.Namespace).UpdateStatus(ctx, r, metav1.UpdateOptions{})
	default:
		err = fmt.Errorf("%T is no route", route)
	}
	return err
}
