package routes

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
)

// world holds routes, and takes writes unless it fails.
type world struct {
	routes watch.GatewayObjects
	writes int
	fail   error
}

func (w *world) GatewayAPI() (watch.GatewayObjects, error) { return w.routes, nil }

func (w *world) UpdateRouteStatus(_ context.Context, route metav1.Object) error {
	if w.fail != nil {
		return w.fail
	}
	w.writes++
	for i, o := range w.routes.HTTPRoutes {
		if o.Name == route.GetName() {
			w.routes.HTTPRoutes[i] = route.(*gateway.HTTPRoute)
		}
	}
	return nil
}

func keeperOf(w *world) *Keeper {
	return New(Config{Controller: us, Objects: w, Writer: w, Logger: slog.New(slog.DiscardHandler)})
}

func route(name string, generation int64, parents ...gateway.RouteParentStatus) *gateway.HTTPRoute {
	o := &gateway.HTTPRoute{}
	o.Namespace, o.Name, o.UID, o.Generation = "shop", name, types.UID(name), generation
	o.Status.Parents = parents
	return o
}

func outcome(name string, generation int64) *translate.Route {
	return &translate.Route{
		Kind: translate.HTTPRoute, Namespace: "shop", Name: name, UID: types.UID(name), Generation: generation,
		Parents: []translate.RouteParent{{Ref: ref("cart"), Conditions: []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "R"}}}},
	}
}

func TestStatusIsWrittenOnceAndForItsGeneration(t *testing.T) {
	w := &world{routes: watch.GatewayObjects{HTTPRoutes: []*gateway.HTTPRoute{
		route("a", 1), route("newer", 2), route("foreign", 1, entry("gw", them)), route("no-longer", 1, entry("cart", us), entry("gw", them)),
	}}}
	k := keeperOf(w)
	k.Published([]*translate.Route{outcome("a", 1), outcome("newer", 1)})
	for range 3 {
		if err := k.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if w.writes != 2 {
		t.Errorf("%d writes, want 2: of a, and of what names no parent of ours any more", w.writes)
	}
	if got := w.routes.HTTPRoutes[0].Status.Parents; len(got) != 1 || got[0].Conditions[0].ObservedGeneration != 1 {
		t.Errorf("a: %+v", got)
	}
	if got := w.routes.HTTPRoutes[1].Status.Parents; len(got) != 0 {
		t.Errorf("the status of a generation that was not translated yet: %+v", got)
	}
	if got := w.routes.HTTPRoutes[3].Status.Parents; len(got) != 1 || got[0].ControllerName != them {
		t.Errorf("no-longer: %+v", got)
	}
}

func TestFailedWritesAreTriedAgain(t *testing.T) {
	w := &world{routes: watch.GatewayObjects{HTTPRoutes: []*gateway.HTTPRoute{route("a", 1)}}, fail: errors.New("conflict")}
	k := keeperOf(w)
	k.Published([]*translate.Route{outcome("a", 1)})
	if err := k.pass(t.Context()); err == nil {
		t.Fatal("a failed write is no error")
	}
	w.fail = nil
	if err := k.pass(t.Context()); err != nil || w.writes != 1 {
		t.Errorf("%d writes, %v", w.writes, err)
	}
}
