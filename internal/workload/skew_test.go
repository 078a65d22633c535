package workload_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// newer gives a message a field of a later version: number 999, a varint of 1.
func newer[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protoreflect.RawFields{0xb8, 0x3e, 1})
	return m
}

// A field of ours that this version does not know may narrow the others: what has one is not read as if it had not, wherever it is.
func TestWhatANewerVersionSaysIsNotRead(t *testing.T) {
	strict, deny := mesh.MutualTLS_STRICT, mesh.EgressPolicy_DENY
	port := func() *mesh.EgressPort { return &mesh.EgressPort{Port: 443, Protocol: mesh.EgressPort_TCP} }
	exception := func(p *mesh.EgressPort) *mesh.EgressException {
		return &mesh.EgressException{Destination: &mesh.EgressException_Cidr{Cidr: "192.0.2.0/24"}, Ports: []*mesh.EgressPort{p}}
	}
	policy := func(e ...*mesh.EgressException) *mesh.EgressPolicy {
		return &mesh.EgressPolicy{Namespace: "shop", Name: "shut", Action: deny, Exceptions: e}
	}
	said := func(name string, config proto.Message) *api.Workload {
		return pod(func(w *api.Workload) { w.Extensions = []*api.Extension{extension(t, name, config)} })
	}
	binding := func() *mesh.Binding {
		return &mesh.Binding{Target: &mesh.Binding_Service{Service: svcKey}, Waypoint: "shop/waypoint"}
	}
	fallback := service(func(s *api.Service) {
		s.Extensions = []*api.Extension{extension(t, workload.WaypointFallbackExtension, newer(&mesh.WaypointFallback{}))}
	})
	for name, c := range map[string]struct {
		typeURL       string
		without, with proto.Message
	}{
		"a namespace":             {workload.NamespaceType, &mesh.Namespace{Name: "shop", MutualTls: strict}, newer(&mesh.Namespace{Name: "shop", MutualTls: strict})},
		"an egress policy":        {workload.EgressPolicyType, policy(), newer(policy())},
		"an exception":            {workload.EgressPolicyType, policy(exception(port())), policy(newer(exception(port())))},
		"a port of an exception":  {workload.EgressPolicyType, policy(exception(port())), policy(exception(newer(port())))},
		"a mode":                  {workload.AddressType, said(workload.MutualTLSExtension, &mesh.MutualTLS{Mode: strict}), said(workload.MutualTLSExtension, newer(&mesh.MutualTLS{Mode: strict}))},
		"names of policies":       {workload.AddressType, said(workload.EgressPoliciesExtension, &mesh.EgressPolicies{}), said(workload.EgressPoliciesExtension, newer(&mesh.EgressPolicies{}))},
		"policies of a waypoint":  {workload.AddressType, said(workload.WaypointPoliciesExtension, &mesh.WaypointPolicies{}), said(workload.WaypointPoliciesExtension, newer(&mesh.WaypointPolicies{}))},
		"a workload's fallback":   {workload.AddressType, said(workload.WaypointFallbackExtension, &mesh.WaypointFallback{}), said(workload.WaypointFallbackExtension, newer(&mesh.WaypointFallback{}))},
		"a service's fallback":    {workload.AddressType, service(nil), fallback},
		"what a waypoint is told": {workload.BindingType, binding(), newer(binding())},
	} {
		for _, way := range []struct {
			message proto.Message
			refused bool
		}{{c.without, false}, {c.with, true}} {
			rejected := workload.NewStore().Apply(workload.Delta{Type: c.typeURL, Upserts: []workload.Resource{workloadtest.Resource(t, way.message)}})
			if (len(rejected) == 1) != way.refused {
				t.Errorf("%s, with the field %v: rejected %v", name, way.refused, rejected)
			}
		}
	}
	// That of a route is for who routes, and what the protocol itself does not know is ignored, as it says.
	routed := binding()
	routed.Routes = []*mesh.Route{newer(&mesh.Route{Kind: mesh.Route_HTTP})}
	workloadtest.Apply(t, workload.NewStore(), routed, newer(pod(nil)), newer(service(nil)))
}

// What a waypoint cannot read it has not got, whatever it had before: a policy may have become narrower, a Binding have got one.
func TestWhatAWaypointCannotReadIsMissing(t *testing.T) {
	store := workload.NewStore()
	policy := &mesh.RequestPolicy{Namespace: "shop", Name: "p", Action: mesh.RequestPolicy_ALLOW}
	authentication := &mesh.RequestAuthentication{Namespace: "shop", Name: "a"}
	binding := &mesh.Binding{Target: &mesh.Binding_Service{Service: svcKey}, Waypoint: "shop/waypoint"}
	other := &mesh.Binding{Target: &mesh.Binding_Workload{Workload: podUID}, Waypoint: "shop/waypoint"}
	there := func() [3]bool {
		s := store.Snapshot()
		_, p := s.RequestPolicy("shop/p")
		_, a := s.RequestAuthentication("shop/a")
		_, b := s.Binding(svcKey)
		if _, ok := s.Binding(podUID); !ok {
			t.Error("one that can be read is missing")
		}
		return [3]bool{p, a, b}
	}
	workloadtest.Apply(t, store, policy, authentication, binding, other)
	if got := there(); got != [3]bool{true, true, true} {
		t.Fatalf("there are %v", got)
	}
	names := map[string]string{workload.RequestPolicyType: "shop/p", workload.RequestAuthenticationType: "shop/a", workload.BindingType: svcKey}
	for typeURL, name := range names {
		garbled := workloadtest.Resource(t, policy)
		garbled.Name, garbled.Version = name, "2"
		garbled.Body.TypeUrl = typeURL
		garbled.Body.Value = []byte{0xff}
		if rejected := store.Apply(workload.Delta{Type: typeURL, Upserts: []workload.Resource{garbled}}); len(rejected) != 1 {
			t.Fatalf("%s can be read", typeURL)
		}
	}
	if got := there(); got != [3]bool{} {
		t.Errorf("unreadable, there are still %v", got)
	}
	workloadtest.Apply(t, store, policy, authentication, binding)
	if got := there(); got != [3]bool{true, true, true} {
		t.Errorf("readable again, there are %v", got)
	}
	// The name that a Binding has while another waypoint takes over is of the same.
	moved := workloadtest.Resource(t, binding)
	moved.Name += "@shop/waypoint"
	moved.Body.Value = []byte{0xff}
	store.Apply(workload.Delta{Type: workload.BindingType, Upserts: []workload.Resource{moved}})
	if got := there(); got != [3]bool{true, true, false} {
		t.Errorf("unreadable by another name, there are %v", got)
	}
}
