package main

import (
	"log/slog"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// A request goes where its rule says, changed as the rule says; what cannot be carried
// out is answered, and never goes to the service past the routes.
func TestRoutesAreCarriedOut(t *testing.T) {
	const cart, next = "shop/cart.shop.svc.cluster.local", "shop/next.shop.svc.cluster.local"
	store := workload.NewStore()
	for name, address := range map[string]byte{"cart": 1, "next": 2} {
		workloadtest.Apply(t, store, &api.Service{
			Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local",
			Addresses: []*api.NetworkAddress{{Address: []byte{10, 9, 100, address}}}, Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}},
		})
	}
	prefix := func(path string) []*mesh.RouteMatch {
		return []*mesh.RouteMatch{{Path: &mesh.PathMatch{Match: &mesh.PathMatch_Prefix{Prefix: path}}}}
	}
	to := func(service string, port uint32) []*mesh.RouteBackend {
		return []*mesh.RouteBackend{{Service: service, Port: port, Weight: 1}}
	}
	modify := &mesh.HeaderModifier{Set: []*mesh.HeaderModifier_Header{{Name: "x-a", Value: "1"}}}
	routes := []*mesh.Route{{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "r", Rules: []*mesh.RouteRule{
		{Name: "next", Matches: prefix("/next"), Backends: to(next, 80), Filters: []*mesh.RouteFilter{
			{Filter: &mesh.RouteFilter_RequestHeaders{RequestHeaders: modify}}, {Filter: &mesh.RouteFilter_ResponseHeaders{ResponseHeaders: modify}},
			{Filter: &mesh.RouteFilter_Rewrite{Rewrite: &mesh.URLRewrite{Hostname: "other", Path: &mesh.PathModifier{Path: &mesh.PathModifier_Prefix{Prefix: "/v2"}}}}},
			{Filter: &mesh.RouteFilter_Mirror{Mirror: &mesh.RequestMirror{Backend: to(cart, 80)[0]}}},
		}},
		{Name: "redirect", Matches: prefix("/old"), Filters: []*mesh.RouteFilter{{Filter: &mesh.RouteFilter_Redirect{Redirect: &mesh.RequestRedirect{Hostname: "new"}}}}},
		{Name: "none", Matches: prefix("/none")},
		{Name: "weightless", Matches: prefix("/weightless"), Backends: []*mesh.RouteBackend{{Service: next, Port: 80}}},
		{Name: "gone", Matches: prefix("/gone"), Backends: to("shop/gone", 80)},
		{Name: "port", Matches: prefix("/port"), Backends: to(next, 81)},
		{Name: "invalid", Matches: prefix("/invalid"), Backends: to(next, 80), Invalid: "cannot be"},
		{Name: "backend", Matches: prefix("/backend"), Backends: []*mesh.RouteBackend{{Weight: 1, Invalid: "not permitted"}}},
		{Name: "unknown", Matches: prefix("/unknown"), Backends: to(next, 80), Filters: []*mesh.RouteFilter{{}}},
	}}}
	s := store.Snapshot()
	service, ok := s.Service(cart)
	if !ok {
		t.Fatal("the service is not known")
	}
	bound := &target.Target{Binding: &workload.Binding{Key: cart, Routes: routes}, Service: service, Port: service.Ports[0]}
	client := target.Client{}
	client.Identity = spiffe.ID{TrustDomain: "cluster.local", Namespace: "web", ServiceAccount: "web"}
	r := newRouter(slog.New(slog.DiscardHandler))

	q := seen(t, "/next/x?y")
	p := r.Route(s, bound, client, q)
	if p.Answer != nil || p.Service.Key != next || p.Port.Service != 80 || p.Route != "shop/r" || p.Rule != "next" || len(p.Mirrors) != 1 {
		t.Fatalf("%+v", p)
	}
	o := exchange.Outgoing{Authority: q.Authority, Path: q.Path}
	p.Request(&o)
	if o.Path != "/v2/x?y" || o.Authority != "other" || len(o.Fields) != 1 || q.Path != "/next/x?y" {
		t.Errorf("goes on as %+v", o)
	}
	if got := p.Response(200, []http1.Field{{Name: "x-a", Value: "0"}}); len(got) != 1 || got[0].Value != "1" {
		t.Errorf("response %v", got)
	}
	for path, status := range map[string]int{
		"/old/x": 302, "/": 404, "/none": 500, "/weightless": 500, "/gone": 500, "/port": 500, "/invalid": 500, "/backend": 500, "/unknown": 500,
	} {
		p := r.Route(s, bound, client, seen(t, path))
		if p.Answer == nil || p.Answer.Status != status {
			t.Errorf("%s: %+v, want %d", path, p, status)
		}
		if status == 302 && p.Answer.Fields[0].Value != "http://new/old/x" {
			t.Error(p.Answer.Fields)
		}
	}
	unrouted := &target.Target{Binding: &workload.Binding{Key: cart}, Service: service, Port: service.Ports[0]}
	if p := r.Route(s, unrouted, client, seen(t, "/")); p.Answer != nil || p.Service != service {
		t.Errorf("%+v", p)
	}
}
