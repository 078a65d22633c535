package push

import (
	"fmt"
	"slices"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
)

func TestFullSubscriptionGetsTheWorldThenItsChanges(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1").pod(t, "b", "10.0.0.2", "1")
	r.Publish(m.world())
	p := r.ztunnel(t, "n1")

	first := p.expect([]string{"a", "b"}, nil)
	var address workload.Address
	if err := first.Resources[0].Resource.UnmarshalTo(&address); err != nil || address.GetWorkload().GetUid() != "a" {
		t.Errorf("body is %v, %v", &address, err)
	}
	if got := first.Resources[0].Aliases; !slices.Equal(got, []string{"/10.0.0.1"}) {
		t.Errorf("aliases %q", got)
	}
	p.expectNothing()

	r.Publish(m.pod(t, "b", "10.0.0.2", "2").pod(t, "c", "10.0.0.3", "1").without("a").world())
	p.expect([]string{"b", "c"}, []string{"a"})
	p.expectNothing()
}

func TestNothingIsServedBeforeTheFirstPublication(t *testing.T) {
	r := newRig(t)
	p := r.ztunnel(t, "n1")
	p.expectNothing()
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").world())
	p.expect([]string{"a"}, nil)
}

// A proxy waits for the first response of every type before it says it is ready.
func TestFirstResponseComesEvenIfEmpty(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.world())
	p := r.ztunnel(t, "n1")
	p.expect(nil, nil)
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Authorization})
	if got := p.expect(nil, nil).TypeUrl; got != resource.Authorization {
		t.Errorf("type %s", got)
	}
}

func TestPublishingTheSameContentAgainChangesNothing(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1")
	first := r.Publish(m.world())
	p := r.ztunnel(t, "n1")
	p.expect([]string{"a"}, nil)
	if again := r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").world()); again != first || r.Publication() != first {
		t.Errorf("publication %d, was %d", again, first)
	}
	p.expectNothing()
}

func TestReconnectedProxyGetsOnlyWhatItLacks(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "same", "10.0.0.1", "1").pod(t, "changed", "10.0.0.2", "2").pod(t, "new", "10.0.0.3", "1")
	r.Publish(m.world())
	p := r.connect(t, "ztunnel", "n1")
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address, InitialResourceVersions: map[string]string{
		"same":    m["same"].Version,
		"changed": "an older version",
		"gone":    "whatever",
	}})
	p.expect([]string{"changed", "new"}, []string{"gone"})
	p.expectNothing()
}

// A proxy in full mode asks for an address that it does not know, before it
// takes it for one outside the mesh.
func TestQuestionInFullMode(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").world())
	p := r.ztunnel(t, "n1")
	p.expect([]string{"a"}, nil)

	p.ask("/10.0.0.9")
	p.expect(nil, []string{"/10.0.0.9"})
	p.ask("/10.0.0.1", "/10.0.0.8")
	p.expect([]string{"a"}, []string{"/10.0.0.8"})
	p.expectNothing()
}

func TestChangesCoalesceWhileAResponseIsUnacknowledged(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "0")
	r.Publish(m.world())
	p := r.ztunnel(t, "n1")
	first := p.receive()
	for i := range 20 {
		r.Publish(m.pod(t, "a", "10.0.0.1", fmt.Sprint(i)).pod(t, "b", "10.0.0.2", fmt.Sprint(i)).world())
	}
	p.expectNothing()
	p.ack(first)
	last := p.expect([]string{"a", "b"}, nil)
	if last.Resources[0].Version != m["a"].Version {
		t.Error("an older version was sent")
	}
	p.expectNothing()
}

// A proxy that does not read costs its own progress only.
func TestSlowProxyDoesNotHoldUpOthers(t *testing.T) {
	r := newRig(t)
	m := mesh{}
	for i := range 5000 { // more than fits into the flow control window
		m.pod(t, fmt.Sprintf("pod-with-a-rather-long-name-%d", i), fmt.Sprintf("10.0.%d.%d", i>>8, i&255), "0")
	}
	r.Publish(m.world())
	deaf := r.connectDeaf(t, "ztunnel", "n1")
	deaf.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address})
	p := r.ztunnel(t, "n2")
	p.ack(p.receive())

	for i := range 10 {
		publication := r.Publish(m.pod(t, "a", "10.1.0.1", fmt.Sprint(i)).world())
		p.expect([]string{"a"}, nil)
		eventually(t, "only the slow one is behind", func() bool {
			return slices.Equal(r.AckedBy(publication), []ProxyKey{{Node: "n1", Pod: "ztunnel-n1"}})
		})
	}
	deaf.stop()
	eventually(t, "its stream is gone", func() bool { return len(r.Connected()) == 1 })
}

func TestOnlyZtunnelIsServed(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.world())

	r.connect(t, "default", "n1").expectEnd(codes.PermissionDenied)

	p := r.connect(t, "ztunnel", "n1")
	claim, err := structpb.NewStruct(map[string]any{"NODE_NAME": "n2"})
	if err != nil {
		t.Fatal(err)
	}
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address, Node: &core.Node{Metadata: claim}})
	p.expectEnd(codes.PermissionDenied)

	stream, err := discovery.NewAggregatedDiscoveryServiceClient(r.dial(t)).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); codeOf(err) != codes.Unauthenticated {
		t.Errorf("without a token: %v", err)
	}
	if got := r.Connected(); len(got) > 0 {
		eventually(t, "nobody is connected", func() bool { return len(r.Connected()) == 0 })
	}
}

func TestTheOtherVariantOfTheProtocolIsNotServed(t *testing.T) {
	r := newRig(t)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(r.dial(t)).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); codeOf(err) != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
}

func TestCloseEndsEveryStream(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.world())
	p := r.ztunnel(t, "n1")
	p.expect(nil, nil)
	r.Close()
	p.expectEnd(codes.Unavailable)
	eventually(t, "nobody is connected", func() bool { return len(r.Connected()) == 0 })
	r.ztunnel(t, "n1").expectEnd(codes.Unavailable)
}

// A token that was withdrawn must not be good for ever.
func TestAStreamEndsAtItsAge(t *testing.T) {
	r := newRig(t)
	r.config.StreamAge = 100 * time.Millisecond
	r.Publish(mesh{}.world())
	p := r.ztunnel(t, "n1")
	p.expect(nil, nil)
	p.expectEnd(codes.Unavailable)
}

func TestSubscriptionsAreBounded(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.world())
	p := r.onDemand(t, "n1")
	p.expect(nil, nil)
	keys := make([]string, maxKeys+1)
	for i := range keys {
		keys[i] = fmt.Sprintf("/%d", i)
	}
	p.ask(keys...)
	p.expectEnd(codes.ResourceExhausted)

	p = r.connect(t, "ztunnel", "n1")
	for i := range maxTypes + 1 {
		p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: fmt.Sprintf("type/%d", i)})
	}
	eventually(t, "the stream ends", func() bool {
		select {
		case <-p.responses:
			return false
		case err := <-p.ended:
			return codeOf(err) == codes.ResourceExhausted
		case <-time.After(patience):
			return false
		}
	})
}

// TestStreamsOfOneProxyAreBounded: who opens more than a proxy does is refused,
// and others are served.
func TestStreamsOfOneProxyAreBounded(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.world())
	var open []*proxy
	for range streamsPerProxy {
		p := r.ztunnel(t, "n1")
		p.expect(nil, nil)
		open = append(open, p)
	}
	r.ztunnel(t, "n1").expectEnd(codes.ResourceExhausted)
	r.ztunnel(t, "n2").expect(nil, nil)
	open[0].stop()
	eventually(t, "one may be opened again", func() bool { return r.streams.Held(ProxyKey{Node: "n1", Pod: "ztunnel-n1"}) < streamsPerProxy })
	r.ztunnel(t, "n1").expect(nil, nil)
}
