// Package watchtest holds policies as an API server would, for tests of what
// works with them.
package watchtest

import (
	cachetest "k8s.io/client-go/tools/cache/testing"

	"github.com/ambit-mesh/ambit/controller/watch"
)

// Policies are the objects that people write: add, modify and delete them as
// they would.
type Policies struct {
	PeerAuthentications   *cachetest.FakeControllerSource
	AuthorizationPolicies *cachetest.FakeControllerSource
	EgressPolicies        *cachetest.FakeControllerSource

	RequestAuthentications *cachetest.FakeControllerSource
}

// New returns none.
func New() *Policies {
	return &Policies{
		PeerAuthentications:   cachetest.NewFakeControllerSource(),
		AuthorizationPolicies: cachetest.NewFakeControllerSource(),
		EgressPolicies:        cachetest.NewFakeControllerSource(),

		RequestAuthentications: cachetest.NewFakeControllerSource(),
	}
}

// Sources for informers.
func (p *Policies) Sources() watch.Policies {
	return watch.Policies{
		PeerAuthentications:   p.PeerAuthentications,
		AuthorizationPolicies: p.AuthorizationPolicies,
		EgressPolicies:        p.EgressPolicies,

		RequestAuthentications: p.RequestAuthentications,
	}
}

// Close ends what they serve.
func (p *Policies) Close() {
	for _, source := range []*cachetest.FakeControllerSource{p.PeerAuthentications, p.AuthorizationPolicies, p.EgressPolicies, p.RequestAuthentications} {
		source.Shutdown()
	}
}

// GatewayAPI is a cluster that has none of its objects.
func GatewayAPI() watch.GatewayAPI {
	none := cachetest.NewFakeControllerSource()
	return watch.GatewayAPI{GatewayClasses: none, Gateways: none, HTTPRoutes: none, GRPCRoutes: none, TLSRoutes: none, TCPRoutes: none}
}
