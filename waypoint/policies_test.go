package main

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

func seen(t *testing.T, path string) *exchange.Request {
	t.Helper()
	r, err := request.Read("GET", "cart", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &exchange.Request{Seen: r, Method: r.Method, Authority: r.Authority(), Path: r.Target()}
}

// Policies of what is bound and of the endpoint: each may refuse, and one that has not
// come refuses.
func TestPoliciesOfBothEnds(t *testing.T) {
	store := workload.NewStore()
	deny := func(name, path string) *mesh.RequestPolicy {
		return &mesh.RequestPolicy{Namespace: "shop", Name: name, Action: mesh.RequestPolicy_DENY, Rules: []*mesh.RequestRule{{
			To: []*mesh.RequestOperation{{Paths: []*mesh.StringPattern{{Match: &mesh.StringPattern_Exact{Exact: path}}}}},
		}}}
	}
	port := deny("port", "/port")
	port.Rules[0].To[0].Ports = []uint32{8080}
	workloadtest.Apply(t, store, deny("a", "/a"), deny("b", "/b"), port)
	p := newPolicies(nil, newTokens("shop", nil, slog.New(slog.DiscardHandler)), nil, slog.New(slog.DiscardHandler))
	at := netip.MustParseAddrPort("10.9.0.3:8080")
	for _, c := range []struct {
		path        string
		bound, pod  []string
		early, late conns.Reason
	}{
		{"/", nil, nil, "", ""},
		{"/", []string{"shop/a"}, []string{"shop/b"}, "", ""},
		{"/a", []string{"shop/a"}, []string{"shop/b"}, conns.PolicyDenied, conns.PolicyDenied},
		{"/x/../a", []string{"shop/a"}, nil, conns.PolicyDenied, conns.PolicyDenied},
		{"/b", []string{"shop/a"}, []string{"shop/b"}, "", conns.PolicyDenied},
		{"/port", []string{"shop/port"}, nil, "", conns.PolicyDenied},
		{"/", []string{"shop/a", "shop/gone"}, nil, conns.PolicyMissing, conns.PolicyMissing},
		{"/", nil, []string{"shop/gone"}, "", conns.PolicyMissing},
	} {
		to := &target.Target{Binding: &workload.Binding{Policies: c.bound}}
		check := func(err error, want conns.Reason) {
			t.Helper()
			if (err != nil) != (want != "") || err != nil && conns.ReasonOf(err) != want {
				t.Errorf("%+v: %v, want %q", c, err, want)
			}
		}
		pod := &workload.Workload{WaypointPolicies: c.pod}
		check(p.Request(store.Snapshot(), to, target.Client{}, seen(t, c.path), nil, netip.AddrPort{}), c.early)
		check(p.Request(store.Snapshot(), to, target.Client{}, seen(t, c.path), pod, at), c.late)
	}
	// An endpoint of which what was said last cannot be read may have policies that nobody knows.
	newer := &api.Workload{Uid: "Kubernetes//Pod/shop/newer", Name: "newer", Namespace: "shop", TunnelProtocol: 77}
	if rejected := store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{workloadtest.Resource(t, newer)}}); len(rejected) != 1 {
		t.Fatal("it can be read")
	}
	endpoint, unbound := &workload.Workload{UID: newer.Uid}, &target.Target{Binding: &workload.Binding{}}
	for _, err := range []error{
		p.Request(store.Snapshot(), unbound, target.Client{}, seen(t, "/"), endpoint, at),
		p.Ask(t.Context(), store.Snapshot(), unbound, target.Client{}, seen(t, "/"), endpoint, at),
		p.Connection(store.Snapshot(), unbound, target.Client{}, endpoint, at),
	} {
		if conns.ReasonOf(err) != conns.PolicyMissing {
			t.Errorf("an endpoint that cannot be read: %v", err)
		}
	}
	// A connection of which no requests are read is refused by what speaks of them.
	to := &target.Target{Binding: &workload.Binding{Policies: []string{"shop/a"}}}
	if err := p.Connection(store.Snapshot(), to, target.Client{}, &workload.Workload{}, at); conns.ReasonOf(err) != conns.PolicyDenied {
		t.Error(err)
	}
}
