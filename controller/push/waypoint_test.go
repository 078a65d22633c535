package push

import (
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/controller/resource"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
)

const (
	ownKey   = "waypoint/shop/waypoint"
	otherKey = "waypoint/web/waypoint"
)

// withWaypoints lets the account "waypoint" subscribe as the one of shop.
func withWaypoints(t *testing.T) *rig {
	r := newRig(t)
	r.config.Waypoint = func(p Peer) (string, bool) { return ownKey, p.ServiceAccount == "waypoint" }
	return r
}

// publishBindings publishes a Binding of each waypoint, beside a pod.
func (r *rig) publishBindings(t *testing.T) uint64 {
	t.Helper()
	all := mesh{}.pod(t, "a", "10.0.0.1", "1").world()
	for name, key := range map[string]string{"shop/cart": ownKey, "web/front": otherKey} {
		b, err := resource.New(name, &meshapi.Binding{Target: &meshapi.Binding_Service{Service: name}, Waypoint: "w/w"}, resource.Relations{Aliases: []string{key}})
		if err != nil {
			t.Fatal(err)
		}
		all.Add(b)
	}
	return r.Publish(all)
}

func TestAWaypointGetsWhatIsItsOwn(t *testing.T) {
	r := withWaypoints(t)
	r.publishBindings(t)
	p := r.connect(t, "waypoint", "n1")
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Binding, ResourceNamesSubscribe: []string{ownKey}})
	response := p.receive()
	if got := names(response); !slices.Equal(got, []string{"shop/cart"}) {
		t.Errorf("got %v", got)
	}
	if r.WaypointsHold(ownKey, resource.Binding, "shop/cart") {
		t.Error("held before it was acknowledged")
	}
	p.ack(response)
	eventually(t, "the waypoint holds its binding", func() bool { return r.WaypointsHold(ownKey, resource.Binding, "shop/cart") })
	if r.WaypointsHold(otherKey, resource.Binding, "web/front") {
		t.Error("a waypoint without a pod holds something")
	}
}

func TestNobodyGetsWhatIsAnotherWaypoints(t *testing.T) {
	for _, test := range []struct {
		name, account string
		request       *discovery.DeltaDiscoveryRequest
	}{
		{"another one's key", "waypoint", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.Binding, ResourceNamesSubscribe: []string{otherKey}}},
		{"all of them", "waypoint", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.Binding}},
		{"all of them, by the wildcard", "waypoint", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.RequestPolicy, ResourceNamesSubscribe: []string{"*"}}},
		{"its own, and a name besides", "waypoint", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.Binding, ResourceNamesSubscribe: []string{ownKey, "web/front"}}},
		{"another one's issuers", "waypoint", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.RequestAuthentication, ResourceNamesSubscribe: []string{otherKey}}},
		{"issuers, by a node's proxy", "ztunnel", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.RequestAuthentication, ResourceNamesSubscribe: []string{ownKey}}},
		{"a node's proxy", "ztunnel", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.Binding, ResourceNamesSubscribe: []string{ownKey}}},
		{"a stranger", "default", &discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := withWaypoints(t)
			r.publishBindings(t)
			p := r.connect(t, test.account, "n1")
			p.send(test.request)
			p.expectEnd(codes.PermissionDenied)
		})
	}
}

// A waypoint is no node: it holds nothing up, and stands for none.
func TestAWaypointStandsForNoNode(t *testing.T) {
	r := withWaypoints(t)
	publication := r.publishBindings(t)
	p := r.connect(t, "waypoint", "n1")
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address})
	p.receive() // not acknowledged
	if behind := r.AckedBy(publication); len(behind) != 0 {
		t.Errorf("behind: %v", behind)
	}
	if connected := r.Connected(); len(connected) != 0 {
		t.Errorf("connected: %v", connected)
	}
}

// What a waypoint says of its troubles is heard until it says otherwise or leaves, and
// takes back no acknowledgement.
func TestTroublesAreHeard(t *testing.T) {
	r := withWaypoints(t)
	r.publishBindings(t)
	p := r.connect(t, "waypoint", "n1")
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Binding, ResourceNamesSubscribe: []string{ownKey}})
	response := p.receive()
	say := func(troubles map[string]string) {
		detail, err := anypb.New(&meshapi.Troubles{Resources: troubles})
		if err != nil {
			t.Fatal(err)
		}
		p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Binding, ErrorDetail: &status.Status{Code: int32(codes.FailedPrecondition), Details: []*anypb.Any{detail}}})
	}
	heard := func(want string) {
		t.Helper()
		eventually(t, "the trouble is "+want, func() bool { return r.WaypointsTrouble(ownKey, resource.Binding, "shop/cart") == want })
	}
	say(map[string]string{"shop/cart": "no keys"}) // while a response is under way
	heard("no keys")
	p.ack(response)
	eventually(t, "the waypoint holds its binding", func() bool { return r.WaypointsHold(ownKey, resource.Binding, "shop/cart") })
	heard("no keys")
	if words := r.WaypointsTrouble(otherKey, resource.Binding, "shop/cart"); words != "" {
		t.Errorf("another waypoint says %q", words)
	}
	say(map[string]string{"shop/cart": strings.Repeat("x", 2*maxWords)})
	heard(strings.Repeat("x", maxWords))
	say(nil)
	heard("")
	say(map[string]string{"shop/cart": "again"})
	heard("again")
	p.stream.CloseSend()
	heard("")
}
