package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// A Service goes from one waypoint to another, and at every step the leader changes: what the next one publishes is what nodes and
// waypoints have, so that nobody is refused who goes by that.
func TestTheNextLeaderPublishesWhatNodesHave(t *testing.T) {
	first := newStages(t)
	first.held["another shop/web.shop.svc.cluster.local"] = true
	on := shopWithWaypoints(t, "waypoint")
	first.translated(on)
	first.acked = first.publication
	first.check()
	moved := shopWithWaypoints(t, "another")
	for step, stage := range []translate.Stage{translate.Announced, translate.Led, translate.Enforced} {
		has := first.translated(moved)
		if got := first.Standing(web, types.NamespacedName{Namespace: "shop", Name: "another"}).Stage; got != stage {
			t.Fatalf("step %d is stage %d, want %d", step, got, stage)
		}
		second := stagesAfter(t, first.record)
		if diff := cmp.Diff(has, second.translated(moved)); diff != "" {
			t.Errorf("at stage %d, the next leader publishes (-before +after):\n%s", stage, diff)
		}
		first.acked, first.time = first.publication, first.time.Add(grace)
		first.check()
	}
}

var web = translate.Target{Kind: "Service", Namespace: "shop", Name: "web"}

// translated publishes what a cluster is translated to, and returns the versions of that, by type and name.
func (s *stages) translated(in translate.Input) map[string]string {
	s.t.Helper()
	in.Bindings = s.bindings
	published := s.looks()
	result, err := translate.Translate(in)
	if err != nil {
		s.t.Fatal(err)
	}
	s.publication++
	published(result.Bound, s.publication)
	versions := map[string]string{}
	for kind, all := range result.Resources {
		for name, r := range all {
			versions[kind+" "+name] = r.Version
		}
	}
	return versions
}

// shopWithWaypoints is a Service with a pod, bound to one of two waypoints that are ready.
func shopWithWaypoints(t *testing.T, bound string) translate.Input {
	t.Helper()
	server := pod("web-1", "10.244.1.5")
	web := service("web", "10.96.0.10")
	web.Labels = map[string]string{binding.Label: bound}
	in := translate.Input{
		Pods: []*corev1.Pod{server}, Services: []*corev1.Service{web}, Slices: []*discoveryv1.EndpointSlice{slice("web", server)},
		Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}},
		Captured:   everyPod{},
		Config:     translate.Config{TrustDomain: "cluster.local", ClusterID: "Kubernetes", ClusterDomain: "cluster.local", SystemNamespace: "ambit-system"},
	}
	for i, name := range []string{"waypoint", "another"} {
		in.Gateways = append(in.Gateways, &gateway.Gateway{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: gateway.GatewaySpec{
				GatewayClassName: binding.Class,
				Listeners:        []gateway.Listener{{Name: binding.Listener, Port: binding.Port, Protocol: binding.Protocol}},
			},
		})
		p := pod(name+"-1", "10.244.1."+string(rune('6'+i)))
		p.Labels, p.Spec.ServiceAccountName = map[string]string{binding.GatewayLabel: name}, name
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		in.Pods = append(in.Pods, p)
		own := service(name, "10.96.0.1"+string(rune('1'+i)))
		own.Labels = map[string]string{binding.GatewayLabel: name}
		in.Services = append(in.Services, own)
		in.Slices = append(in.Slices, slice(name, p))
	}
	return in
}

// everyPod is captured.
type everyPod struct{}

func (everyPod) Has(types.UID) bool { return true }
