package server

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// On a port of a protocol in which the server speaks first nobody is waited for; what is
// declared, and what is routed, goes before that.
func TestWhatAPortSpeaks(t *testing.T) {
	service := func(port uint16, app string, routes ...*mesh.Route) *target.Target {
		return &target.Target{Service: &workload.Service{Namespace: "shop"}, Port: workload.Port{Service: port, App: app}, Binding: &workload.Binding{Routes: routes}}
	}
	pod := func(port uint16) *target.Target {
		return &target.Target{Endpoint: &workload.Workload{Namespace: "shop"}, Address: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.3"), port), Binding: &workload.Binding{}}
	}
	http := &mesh.Route{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "r"}
	for name, c := range map[string]struct {
		target *target.Target
		want   protocol
	}{
		"a port that says nothing":  {service(8080, ""), unsaid},
		"MySQL's":                   {service(3306, ""), plain},
		"SMTP's, of a pod":          {pod(25), plain},
		"another one of a pod":      {pod(8080), unsaid},
		"MySQL's, declared HTTP":    {service(3306, "HTTP11"), unsaidHTTP},
		"MySQL's, routed":           {service(3306, "", http), unsaidHTTP},
		"declared TCP":              {service(8080, "TCP"), plain},
		"declared TCP, yet routed":  {service(8080, "TCP", http), unsaidHTTP},
		"declared HTTP/2, unrouted": {service(8080, "HTTP2"), unsaidHTTP},
	} {
		if got := speaks(c.target, "shop"); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
