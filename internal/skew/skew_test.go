package skew_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/skew"
)

// newer gives a message a field of a later version: number 999, a varint of 1.
func newer(m proto.Message) { m.ProtoReflect().SetUnknown(protoreflect.RawFields{0xb8, 0x3e, 1}) }

func TestAFieldThatIsNotKnownIsFoundWhereverItIs(t *testing.T) {
	match := &mesh.ValueMatch{Name: "x-tenant", Match: &mesh.ValueMatch_Exact{Exact: "one"}}
	backend := &mesh.RouteBackend{Service: "shop/cart", Port: 80}
	mirror := &mesh.RequestMirror{Backend: backend}
	binding := &mesh.Binding{Routes: []*mesh.Route{{}, {Rules: []*mesh.RouteRule{{
		Matches: []*mesh.RouteMatch{{Headers: []*mesh.ValueMatch{match}}},
		Filters: []*mesh.RouteFilter{{Filter: &mesh.RouteFilter_Mirror{Mirror: mirror}}},
	}}}}}
	ports := &api.PortList{Ports: []*api.Port{{ServicePort: 80}}}
	pod := &api.Workload{Uid: "a", Services: map[string]*api.PortList{"shop/cart": ports}, Locality: &api.Locality{Zone: "z"}}
	for _, m := range []proto.Message{binding, pod, &mesh.Binding{}} {
		if err := skew.Check(m); err != nil {
			t.Errorf("%v: %v", m, err)
		}
	}
	for name, c := range map[string]struct{ in, of proto.Message }{
		"the message":       {binding, binding},
		"of a list":         {binding.Routes[1], binding},
		"of a list in it":   {match, binding},
		"of a oneof":        {mirror, binding},
		"within a oneof":    {backend, binding},
		"of a map":          {ports, pod},
		"within a map":      {ports.Ports[0], pod},
		"of a single field": {pod.Locality, pod},
	} {
		newer(c.in)
		if skew.Check(c.of) == nil {
			t.Errorf("%s: not found", name)
		}
		c.in.ProtoReflect().SetUnknown(nil)
		if err := skew.Check(c.of); err != nil {
			t.Errorf("%s, without it: %v", name, err)
		}
	}
}
