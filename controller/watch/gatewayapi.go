package watch

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// GatewayAPI is where informers get the objects of the Gateway API from. Whether a
// cluster knows them is the sources' matter: to informers there are none, then.
type GatewayAPI struct {
	GatewayClasses, Gateways                     cache.ListerWatcher
	HTTPRoutes, GRPCRoutes, TLSRoutes, TCPRoutes cache.ListerWatcher
}

// GatewayObjects are all objects of the Gateway API in a cluster. They are shared:
// nobody may change them.
type GatewayObjects struct {
	GatewayClasses []*gateway.GatewayClass
	Gateways       []*gateway.Gateway
	HTTPRoutes     []*gateway.HTTPRoute
	GRPCRoutes     []*gateway.GRPCRoute
	TLSRoutes      []*gateway.TLSRoute
	TCPRoutes      []*gateway.TCPRoute
}

// gatewayAPI are the informers.
type gatewayAPI struct {
	gatewayClasses, gateways                     cache.SharedIndexInformer
	httpRoutes, grpcRoutes, tlsRoutes, tcpRoutes cache.SharedIndexInformer
}

func newGatewayAPI(from GatewayAPI, changed func()) (*gatewayAPI, error) {
	g := &gatewayAPI{}
	for _, kind := range []struct {
		source   cache.ListerWatcher
		example  runtime.Object
		informer *cache.SharedIndexInformer
	}{
		{from.GatewayClasses, &gateway.GatewayClass{}, &g.gatewayClasses},
		{from.Gateways, &gateway.Gateway{}, &g.gateways},
		{from.HTTPRoutes, &gateway.HTTPRoute{}, &g.httpRoutes},
		{from.GRPCRoutes, &gateway.GRPCRoute{}, &g.grpcRoutes},
		{from.TLSRoutes, &gateway.TLSRoute{}, &g.tlsRoutes},
		{from.TCPRoutes, &gateway.TCPRoute{}, &g.tcpRoutes},
	} {
		if kind.source == nil {
			return nil, fmt.Errorf("watch %T: no source", kind.example)
		}
		*kind.informer = cache.NewSharedIndexInformer(kind.source, kind.example, 0, cache.Indexers{})
		if _, err := (*kind.informer).AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() },
			UpdateFunc: func(old, new any) {
				if !sameContent(old, new) {
					changed()
				}
			},
			DeleteFunc: func(any) { changed() },
		}); err != nil {
			return nil, fmt.Errorf("watch %T: %w", kind.example, err)
		}
	}
	return g, nil
}

func (g *gatewayAPI) all() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{g.gatewayClasses, g.gateways, g.httpRoutes, g.grpcRoutes, g.tlsRoutes, g.tcpRoutes}
}

// GatewayAPI returns what is there now.
func (s *Sources) GatewayAPI() (o GatewayObjects, err error) {
	var errs [6]error
	o.GatewayClasses, errs[0] = list[*gateway.GatewayClass](s.gatewayAPI.gatewayClasses)
	o.Gateways, errs[1] = list[*gateway.Gateway](s.gatewayAPI.gateways)
	o.HTTPRoutes, errs[2] = list[*gateway.HTTPRoute](s.gatewayAPI.httpRoutes)
	o.GRPCRoutes, errs[3] = list[*gateway.GRPCRoute](s.gatewayAPI.grpcRoutes)
	o.TLSRoutes, errs[4] = list[*gateway.TLSRoute](s.gatewayAPI.tlsRoutes)
	o.TCPRoutes, errs[5] = list[*gateway.TCPRoute](s.gatewayAPI.tcpRoutes)
	return o, errors.Join(errs[:]...)
}
