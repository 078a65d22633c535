package target

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Routes are of a Service's front end: not of a pod that is addressed itself, though
// the Service's waypoint stands before it.
func TestRoutesAreForWhoAddressesTheService(t *testing.T) {
	routes := []*mesh.Route{{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "r"}}
	service := &Target{Service: &workload.Service{}, Port: workload.Port{Service: 80}, Binding: &workload.Binding{Routes: routes}}
	if len(service.RoutesFor("web")) != 1 || len(service.Routes()) != 1 {
		t.Error("no routes for the Service")
	}
	pod := *service
	pod.Endpoint = &workload.Workload{}
	if len(pod.RoutesFor("web")) != 0 || len(pod.Routes()) != 0 {
		t.Error("routes for a pod that is addressed itself")
	}
}

// A client's own namespace comes before the Service's, one kind of routes before another,
// and other namespaces' routes are nothing to it.
func TestWhichRoutesCount(t *testing.T) {
	route := func(kind mesh.Route_Kind, namespace, name string, port uint32) *mesh.Route {
		return &mesh.Route{Kind: kind, Namespace: namespace, Name: name, Port: port, Consumer: namespace != "shop"}
	}
	routes := []*mesh.Route{
		route(mesh.Route_TCP, "shop", "tcp", 0), route(mesh.Route_HTTP, "shop", "http", 80), route(mesh.Route_HTTP, "shop", "http-too", 0),
		route(mesh.Route_GRPC, "shop", "grpc", 90), route(mesh.Route_TLS, "web", "tls", 0), route(mesh.Route_HTTP, "web", "consumer", 70),
		route(mesh.Route_HTTP, "mobile", "theirs", 80),
	}
	for _, c := range []struct {
		namespace string
		port      uint16
		want      string
	}{
		{"shop", 80, "http http-too"}, {"shop", 90, "grpc"}, {"shop", 70, "http-too"}, {"web", 80, "tls"}, {"web", 70, "consumer"}, {"mobile", 80, "theirs"}, {"mobile", 90, "grpc"},
	} {
		to := &Target{Service: &workload.Service{}, Port: workload.Port{Service: c.port}, Binding: &workload.Binding{Routes: routes}}
		var got []string
		for _, r := range to.RoutesFor(c.namespace) {
			got = append(got, r.GetName())
		}
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("a client of %s at port %d: %s, want %s", c.namespace, c.port, got, c.want)
		}
	}
}
