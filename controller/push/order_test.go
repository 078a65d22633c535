package push

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	ambit "github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/controller/resource"
)

func (m mesh) message(t *testing.T, name string, message proto.Message) mesh {
	t.Helper()
	r, err := resource.New(name, message, resource.Relations{})
	if err != nil {
		t.Fatal(err)
	}
	m[name] = r
	return m
}

// policy adds an authorization; each revision has a content of its own.
func (m mesh) policy(t *testing.T, name, revision string) mesh {
	return m.message(t, name, &security.Authorization{Name: name, Namespace: revision})
}

func (m mesh) egress(t *testing.T, name string) mesh {
	return m.message(t, name, &ambit.EgressPolicy{Name: name})
}

// protected connects a proxy that subscribes to policies and addresses, and has
// acknowledged all there is.
func (r *rig) protected(t *testing.T, node string) *proxy {
	t.Helper()
	p := r.connect(t, "ztunnel", node)
	for _, typeURL := range []string{resource.Authorization, resource.EgressPolicy, resource.Address} {
		p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL})
		p.ack(p.receive())
	}
	return p
}

// of checks which type a response is of.
func (p *proxy) of(typeURL string, r *discovery.DeltaDiscoveryResponse) {
	p.t.Helper()
	if r.TypeUrl != typeURL {
		p.t.Fatalf("%s came, want %s", r.TypeUrl, typeURL)
	}
}

// What workloads name is there before them, and goes after them.
func TestPoliciesComeBeforeAddressesAndGoAfterThem(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").policy(t, "old", "1").egress(t, "old out").world())
	p := r.protected(t, "n1")

	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "2").policy(t, "new", "1").egress(t, "new out").world())
	first := p.receive() // in one go, before anything is acknowledged
	p.of(resource.EgressPolicy, first)
	second := p.receive()
	p.of(resource.Authorization, second)
	third := p.receive()
	p.of(resource.Address, third)
	for _, response := range []*discovery.DeltaDiscoveryResponse{first, second, third} {
		if len(response.RemovedResources) > 0 {
			t.Errorf("%v of %s is taken away together with what replaces it", response.RemovedResources, response.TypeUrl)
		}
	}
	p.ack(first)
	p.of(resource.EgressPolicy, p.expect(nil, []string{"old out"}))
	p.ack(second)
	p.of(resource.Authorization, p.expect(nil, []string{"old"}))
	p.ack(third)
	p.expectNothing()
}

// A removal alone goes out right after the addresses, or after nothing.
func TestRemovalOfAPolicyAlone(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").policy(t, "old", "1").world())
	p := r.protected(t, "n1")
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "2").world())
	p.of(resource.Address, p.expect([]string{"a"}, nil))
	p.of(resource.Authorization, p.expect(nil, []string{"old"}))

	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "2").policy(t, "next", "1").world())
	p.expect([]string{"next"}, nil)
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "2").world())
	p.of(resource.Authorization, p.expect(nil, []string{"next"}))
	p.expectNothing()
}

// While an older response about policies is under way, addresses wait: they may
// name what that one lacks.
func TestAddressesWaitForPolicies(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").world())
	p := r.protected(t, "n1")
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").policy(t, "one", "1").world())
	slow := p.receive()

	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "2").policy(t, "one", "1").policy(t, "two", "1").world())
	p.expectNothing()
	p.ack(slow)
	p.of(resource.Authorization, p.expect([]string{"two"}, nil))
	p.of(resource.Address, p.expect([]string{"a"}, nil))
}

// holding tells what a node is known to hold of a policy.
func (r *rig) holding(node, name string) (has bool, refusal string) {
	r.EachProxy(func(h Holdings) {
		if h.Proxy.Node == node {
			has, refusal = h.Has(resource.Authorization, name)
		}
	})
	return has, refusal
}

func TestWhatAProxyHolds(t *testing.T) {
	r := newRig(t)
	answered := make(chan struct{}, 100)
	r.config.Answered = func() { answered <- struct{}{} }
	r.EachProxy(func(Holdings) { t.Error("a proxy, before there is any") })
	m := mesh{}.pod(t, "a", "10.0.0.1", "1").policy(t, "good", "1")
	r.Publish(m.world())
	r.protected(t, "n2")
	p := r.protected(t, "n1")
	wants := func(when, name string, want bool, words string) {
		t.Helper()
		eventually(t, when, func() bool {
			has, refusal := r.holding("n1", name)
			return has == want && refusal == words
		})
	}
	wants("an acknowledged policy is held", "good", true, "")
	wants("one that is not published is not", "other", false, "")

	r.Publish(m.policy(t, "good", "2").policy(t, "bad", "1").world())
	response := p.receive()
	wants("a change on its way is not held", "good", false, "")
	p.nack(response, `"bad": rules[0]: no such thing`)
	wants("a refused one is not, in the proxy's words", "bad", false, `"bad": rules[0]: no such thing`)
	wants("what came with it is not known to be", "good", false, `"bad": rules[0]: no such thing`)
	if has, _ := r.holding("n2", "bad"); has {
		t.Error("the other proxy holds what it has not acknowledged")
	}

	r.Publish(m.policy(t, "good", "3").policy(t, "bad", "2").world())
	p.expect([]string{"bad", "good"}, nil)
	wants("the next version is", "bad", true, "")
	wants("and what came with it", "good", true, "")

	for len(answered) > 0 {
		<-answered
	}
	p.stop()
	<-answered // a node without a proxy has nothing in force
}

// A proxy that resumes with what it holds is known to hold it.
func TestWhatAProxyResumesWith(t *testing.T) {
	r := newRig(t)
	m := mesh{}.policy(t, "same", "1").policy(t, "changed", "1")
	held := map[string]string{"same": m["same"].Version, "changed": m["changed"].Version}
	r.Publish(m.policy(t, "changed", "2").world())
	p := r.connect(t, "ztunnel", "n1")
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Authorization, InitialResourceVersions: held})
	response := p.receive()
	if has, _ := r.holding("n1", "same"); !has {
		t.Error("what it resumed with is not known")
	}
	if has, _ := r.holding("n1", "changed"); has {
		t.Error("what it has yet to acknowledge is held")
	}
	p.ack(response)
	eventually(t, "the acknowledgement counts", func() bool { has, _ := r.holding("n1", "changed"); return has })
}
