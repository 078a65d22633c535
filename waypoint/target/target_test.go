package target

import (
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Routes are of a Service's front end: not of a pod that is addressed itself, though
// the Service's waypoint stands before it.
func TestRoutesAreForWhoAddressesTheService(t *testing.T) {
	routes := []*mesh.Route{{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "r"}}
	service := &Target{Service: &workload.Service{}, Port: workload.Port{Service: 80}, Binding: &workload.Binding{Routes: routes}}
	if !service.Routed() || len(service.Routes()) != 1 {
		t.Error("no routes for the Service")
	}
	pod := *service
	pod.Endpoint = &workload.Workload{}
	if pod.Routed() || len(pod.Routes()) != 0 {
		t.Error("routes for a pod that is addressed itself")
	}
}
