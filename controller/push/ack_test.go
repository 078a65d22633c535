package push

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/controller/resource"
)

var (
	n1 = ProxyKey{Node: "n1", Pod: "ztunnel-n1"}
	n2 = ProxyKey{Node: "n2", Pod: "ztunnel-n2"}
)

// behind waits until exactly these proxies have not acknowledged a publication.
func (r *rig) behind(t *testing.T, publication uint64, want ...ProxyKey) {
	t.Helper()
	eventually(t, "the proxies behind are as expected", func() bool {
		return slices.Equal(r.AckedBy(publication), want)
	})
}

func TestAcknowledgementsAreTracked(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1")
	first := r.Publish(m.world())
	if got := r.AckedBy(first); len(got) > 0 {
		t.Errorf("nobody is connected, but %v are behind", got)
	}
	one, two := r.ztunnel(t, "n1"), r.ztunnel(t, "n2")
	fromOne := one.receive()
	two.expect([]string{"a"}, nil)
	r.behind(t, first, n1)
	one.ack(fromOne)
	r.behind(t, first)

	second := r.Publish(m.pod(t, "a", "10.0.0.1", "2").world())
	fromOne, fromTwo := one.receive(), two.receive()
	r.behind(t, second, n1, n2)
	r.behind(t, first)
	one.ack(fromOne)
	r.behind(t, second, n2)

	// What one has acknowledged holds for earlier publications; what two has
	// not, holds for later ones.
	third := r.Publish(m.pod(t, "b", "10.0.0.2", "1").world())
	one.expect([]string{"b"}, nil)
	r.behind(t, third, n2)
	r.behind(t, second, n2)
	two.ack(fromTwo)
	two.expect([]string{"b"}, nil)
	r.behind(t, third)
}

func TestAProxyThatConnectsIsBehindUntilItAcknowledges(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1")
	first := r.Publish(m.world())
	p := r.connect(t, "ztunnel", "n1")
	r.behind(t, first, n1) // it may hold anything from before
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Authorization})
	p.expect(nil, nil)
	r.behind(t, first, n1) // another type says nothing about addresses
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address})
	p.expect([]string{"a"}, nil)
	r.behind(t, first)
}

func TestNothingToSendCountsAsAcknowledged(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1")
	r.Publish(m.world())
	p := r.onDemand(t, "n2") // and asks for nothing
	p.expect(nil, nil)
	publication := r.Publish(m.pod(t, "a", "10.0.0.1", "2").world())
	r.behind(t, publication)
	p.expectNothing()
}

func TestDisconnectedProxiesAreNotCounted(t *testing.T) {
	r := newRig(t)
	publication := r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").world())
	p := r.ztunnel(t, "n1")
	p.receive()
	r.behind(t, publication, n1)
	p.stop()
	r.behind(t, publication)
}

func TestStaleNonceIsNoAcknowledgement(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1")
	r.Publish(m.world())
	p := r.ztunnel(t, "n1")
	first := p.expect([]string{"a"}, nil)
	publication := r.Publish(m.pod(t, "a", "10.0.0.1", "2").world())
	second := p.receive()
	p.ack(first)
	p.ask("/10.9.9.9") // sees that the server has read the stale one
	p.expectNothing()
	r.behind(t, publication, n1)
	p.ack(second)
	p.expect(nil, []string{"/10.9.9.9"})
	r.behind(t, publication)
}

func TestRejectedResourceIsNotSentAgainUntilItChanges(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "bad", "10.0.0.1", "1")
	r.Publish(m.world())
	p := r.ztunnel(t, "n1")
	p.nack(p.receive(), "bad: no such thing")
	p.expectNothing()

	r.Publish(m.pod(t, "good", "10.0.0.2", "1").world())
	p.expect([]string{"good"}, nil)
	r.Publish(m.pod(t, "bad", "10.0.0.1", "2").world())
	p.expect([]string{"bad"}, nil)

	if got := testutil.ToFloat64(r.metrics.nacks.WithLabelValues("istio.workload.Address")); got != 1 {
		t.Errorf("%v rejections counted", got)
	}
}

// What a proxy rejected, it may not work with: it must not count as withdrawn.
func TestRejectionIsNoAcknowledgement(t *testing.T) {
	r := newRig(t)
	m := mesh{}.pod(t, "a", "10.0.0.1", "1").pod(t, "bad", "10.0.0.2", "1")
	before := r.Publish(m.world())
	p := r.ztunnel(t, "n1")
	p.expect([]string{"a", "bad"}, nil)

	withdrawn := r.Publish(m.pod(t, "a", "10.0.0.1", "2").pod(t, "bad", "10.0.0.2", "2").world())
	p.nack(p.receive(), "bad")
	after := r.Publish(m.pod(t, "b", "10.0.0.3", "1").world())
	p.expect([]string{"b"}, nil)

	r.behind(t, before)
	r.behind(t, withdrawn, n1) // a went along with bad: what became of it is unknown
	r.behind(t, after)         // changes of its own, and accepted

	r.Publish(m.pod(t, "a", "10.0.0.1", "3").pod(t, "bad", "10.0.0.2", "3").world())
	p.expect([]string{"a", "bad"}, nil)
	r.behind(t, withdrawn)
}

func TestDump(t *testing.T) {
	r := newRig(t)
	r.Publish(mesh{}.pod(t, "a", "10.0.0.1", "1").world())
	p := r.ztunnel(t, "n1")
	p.nack(p.receive(), "a is bad")
	eventually(t, "the rejection arrives", func() bool {
		return testutil.ToFloat64(r.metrics.nacks.WithLabelValues("istio.workload.Address")) == 1
	})
	text, err := json.Marshal(r.Dump())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"node":"n1"`, `"pod":"ztunnel-n1"`, `"full":true`, `"rejected":["a"]`,
		`"rejection":"a is bad"`, `"publication":1`, `"uid":"a"`} {
		if !strings.Contains(strings.ReplaceAll(string(text), `": "`, `":"`), want) {
			t.Errorf("the dump lacks %s:\n%s", want, text)
		}
	}
}

func codeOf(err error) codes.Code { return grpcstatus.Code(err) }
