package route_test

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// awaited makes a pod one that its node is still to capture.
func awaited(t *testing.T, mode mesh.MutualTLS_Mode, strictPorts ...uint32) func(*api.Workload) {
	return func(w *api.Workload) {
		mutualTLS(t, mode)(w)
		e := w.Extensions[len(w.Extensions)-1]
		m := &mesh.MutualTLS{Mode: mode, AwaitsCapture: true, StrictPorts: strictPorts}
		if err := e.Config.MarshalFrom(m); err != nil {
			t.Fatal(err)
		}
		w.TunnelProtocol = api.TunnelProtocol_NONE
		if mode == mesh.MutualTLS_STRICT {
			w.TunnelProtocol = hbone
		}
	}
}

// What refuses plaintext and is not captured yet is not reached, by whomever, on whatever node. What takes plaintext is.
func TestDestinationThatAwaitsItsCapture(t *testing.T) {
	strict, permissive := mesh.MutualTLS_STRICT, mesh.MutualTLS_PERMISSIVE
	for name, c := range map[string]struct {
		db   []func(*api.Workload)
		want route.Kind // 0: NotCaptured
	}{
		"strict":                            {[]func(*api.Workload){awaited(t, strict)}, 0},
		"strict, said to take no tunnels":   {[]func(*api.Workload){awaited(t, strict), plain}, 0},
		"strict, on the source's node":      {[]func(*api.Workload){awaited(t, strict), func(w *api.Workload) { w.Node = "n1" }}, 0},
		"permissive":                        {[]func(*api.Workload){awaited(t, permissive)}, route.Plaintext},
		"permissive, and this port strict":  {[]func(*api.Workload){awaited(t, permissive, 443, 5432)}, 0},
		"permissive, and another strict":    {[]func(*api.Workload){awaited(t, permissive, 443)}, route.Plaintext},
		"strict, and nobody is to capture":  {[]func(*api.Workload){mutualTLS(t, strict), plain}, route.Plaintext},
		"strict, and captured by its node":  {[]func(*api.Workload){mutualTLS(t, strict)}, route.Tunnel},
		"awaited and strict, another claim": {[]func(*api.Workload){awaited(t, strict)}, 0},
	} {
		for _, source := range []mesh.MutualTLS_Mode{strict, permissive} {
			t.Run(name+", from "+source.String(), func(t *testing.T) {
				store := workloadtest.Store(t, config, pod("web", "n1", "1.1", mutualTLS(t, source)), pod("db", "n2", "2.1", c.db...))
				if name == "awaited and strict, another claim" {
					workloadtest.Apply(t, store, pod("another", "n2", "2.1", plain))
				}
				web, _ := store.Snapshot().WorkloadByUID(uid("web"))
				for _, to := range []string{"10.244.2.1:5432", "[fd00:10::2:1]:5432"} {
					up, err := route.Decide(route.Request{Source: web, Destination: netip.MustParseAddrPort(to)}, store.Snapshot(), first)
					refusal, _ := err.(*route.Refusal)
					switch {
					case c.want == 0 && (refusal == nil || refusal.Reason != route.NotCaptured || !refusal.Passes()):
						t.Errorf("%s: %v, %v; want NotCaptured", to, up.Kind, err)
					case c.want != 0 && (err != nil || up.Kind != c.want):
						t.Errorf("%s: %v, %v; want %v", to, up.Kind, err, c.want)
					}
				}
			})
		}
	}
}

// Of a service those endpoints are taken that can be reached; where none is, but one may be soon, that is what is said.
func TestServiceWithEndpointsThatAwaitTheirCapture(t *testing.T) {
	strict := mesh.MutualTLS_STRICT
	web := pod("web", "n1", "1.1")
	var endpoints []*api.Workload
	for _, at := range []string{"2.1", "2.2", "2.3", "2.4", "2.5", "2.6"} { // more than those that are all looked at
		endpoints = append(endpoints, pod("cart-"+at, "n2", at, serves(cart), awaited(t, strict)))
	}
	store := workloadtest.Store(t, config, web, service("cart", []string{"10.96.0.1"}))
	for _, e := range endpoints {
		workloadtest.Apply(t, store, e)
	}
	source, _ := store.Snapshot().WorkloadByUID(web.Uid)
	request := route.Request{Source: source, Destination: netip.MustParseAddrPort("10.96.0.1:80")}
	_, err := route.Decide(request, store.Snapshot(), first)
	if refusal, _ := err.(*route.Refusal); refusal == nil || refusal.Reason != route.NotCaptured {
		t.Fatalf("%v, want NotCaptured", err)
	}
	captured := pod("cart-2.4", "n2", "2.4", serves(cart), mutualTLS(t, strict))
	workloadtest.Apply(t, store, captured)
	for n := range uint64(100) {
		up, err := route.Decide(request, store.Snapshot(), func(of uint64) uint64 { return n % of })
		if err != nil || up.Kind != route.Tunnel || up.Workload.UID != captured.Uid {
			t.Fatalf("%v %v, %v; want a tunnel to the one that is captured", up.Kind, up.Workload, err)
		}
	}
}
