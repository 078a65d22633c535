package push

import (
	"slices"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/controller/resource"
)

func TestOnDemandBeginsWithTheNodesOwnPods(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1").service(t, "s", "10.96.0.1")
	r.Publish(m.world())
	r.onDemand(t, "n2").expect(nil, nil)

	p := r.onDemand(t, "n1")
	p.expect([]string{"a"}, nil)
	r.Publish(m.pod(t, "b", "10.0.0.2", "1").world())
	p.expect([]string{"b"}, nil)
}

func TestOnDemandByNameAndByAlias(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1").pod(t, "b", "10.0.0.2", "1").pod(t, "c", "10.0.0.3", "1")
	r.Publish(m.world())
	p := r.onDemand(t, "n2")
	p.expect(nil, nil)

	p.ask("/10.0.0.1")
	got := p.expect([]string{"a"}, nil)
	if !slices.Equal(got.Resources[0].Aliases, []string{"/10.0.0.1"}) {
		t.Errorf("the answer does not name the key that was asked for: %q", got.Resources[0].Aliases)
	}
	p.ask("b")
	p.expect([]string{"b"}, nil)

	// What was asked for is followed; nothing else is.
	r.Publish(m.pod(t, "a", "10.0.0.1", "2").pod(t, "c", "10.0.0.3", "2").world())
	p.expect([]string{"a"}, nil)
	p.expectNothing()
	r.Publish(m.without("b").world())
	p.expect(nil, []string{"b"})

	// Asked again, it is answered again.
	p.ask("/10.0.0.1")
	p.expect([]string{"a"}, nil)
}

func TestOnDemandUnknownKeyIsSaidToBeRemovedAndSentWhenItAppears(t *testing.T) {
	r := newRig(t)
	m := mesh{}
	r.Publish(m.world())
	p := r.onDemand(t, "n2")
	p.expect(nil, nil)
	p.ask("/10.0.0.1")
	p.expect(nil, []string{"/10.0.0.1"})

	r.Publish(m.pod(t, "a", "10.0.0.1", "1").world())
	p.expect([]string{"a"}, nil)

	// The address passes to another pod.
	r.Publish(m.without("a").pod(t, "b", "10.0.0.1", "1").world())
	p.expect([]string{"b"}, []string{"a"})
}

func TestOnDemandServiceBringsItsEndpoints(t *testing.T) {
	r := newRig(t)
	m := mesh{}.service(t, "s", "10.96.0.1").pod(t, "a", "10.0.0.1", "1", "s").pod(t, "b", "10.0.0.2", "1")
	r.Publish(m.world())
	p := r.onDemand(t, "n2")
	p.expect(nil, nil)
	p.ask("/10.96.0.1")
	p.expect([]string{"a", "s"}, nil)

	r.Publish(m.pod(t, "b", "10.0.0.2", "2", "s").world())
	p.expect([]string{"b"}, nil)

	// An endpoint that left must not be used any more, though it still exists.
	r.Publish(m.pod(t, "a", "10.0.0.1", "2").world())
	p.expect(nil, []string{"a"})
}

func TestOnDemandUnsubscribe(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1")
	r.Publish(m.world())
	p := r.onDemand(t, "n2")
	p.expect(nil, nil)
	p.ask("/10.0.0.1")
	p.expect([]string{"a"}, nil)
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address, ResourceNamesUnsubscribe: []string{"/10.0.0.1"}})
	p.expect(nil, []string{"a"})
	r.Publish(m.pod(t, "a", "10.0.0.1", "2").world())
	p.expectNothing()
}

func TestOnDemandResume(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "same", "10.0.0.1", "1").pod(t, "changed", "10.0.0.2", "2").pod(t, "other", "10.0.0.3", "1")
	r.Publish(m.world())
	p := r.connect(t, "ztunnel", "n2")
	p.send(&discovery.DeltaDiscoveryRequest{
		TypeUrl:                  resource.Address,
		ResourceNamesSubscribe:   []string{"*", "same", "/10.0.0.2", "gone"},
		ResourceNamesUnsubscribe: []string{"*"},
		InitialResourceVersions: map[string]string{
			"same": m["same"].Version, "changed": "an older version", "gone": "whatever",
		},
	})
	p.expect([]string{"changed"}, []string{"gone"})
	p.expectNothing()
}
