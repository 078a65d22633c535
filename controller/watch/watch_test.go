package watch

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kubewatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	cachetest "k8s.io/client-go/tools/cache/testing"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// start runs sources on a fake cluster until the test ends.
func start(t *testing.T, client *fake.Clientset) (*Sources, *atomic.Int64) {
	t.Helper()
	return startWith(t, client, noPolicies(t))
}

// noPolicies are sources without objects.
func noPolicies(t *testing.T) Policies {
	source := func() *cachetest.FakeControllerSource {
		s := cachetest.NewFakeControllerSource()
		t.Cleanup(s.Shutdown)
		return s
	}
	return Policies{PeerAuthentications: source(), AuthorizationPolicies: source(), EgressPolicies: source(), RequestAuthentications: source()}
}

// noGateways are sources of a cluster without Gateways and routes.
func noGateways(t *testing.T) GatewayAPI {
	none := cachetest.NewFakeControllerSource()
	t.Cleanup(none.Shutdown)
	return GatewayAPI{GatewayClasses: none, Gateways: none, HTTPRoutes: none, GRPCRoutes: none, TLSRoutes: none, TCPRoutes: none}
}

func startWith(t *testing.T, client *fake.Clientset, policies Policies) (*Sources, *atomic.Int64) {
	t.Helper()
	changes := new(atomic.Int64)
	s, err := New(client, policies, noGateways(t), func() { changes.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	return s, changes
}

func TestObjectsAreCompleteOnceSynced(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "web"}
	client := fake.NewClientset(
		&corev1.Pod{ObjectMeta: meta}, &corev1.Service{ObjectMeta: meta}, &discoveryv1.EndpointSlice{ObjectMeta: meta},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}})
	s, changes := start(t, client)
	if err := s.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := s.Objects()
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Pods) != 1 || len(o.Services) != 1 || len(o.Slices) != 1 || len(o.Nodes) != 1 || len(o.Namespaces) != 1 || len(o.ServiceCIDRs) != 1 {
		t.Errorf("%d pods, %d services, %d slices, %d nodes, %d namespaces, %d ServiceCIDRs",
			len(o.Pods), len(o.Services), len(o.Slices), len(o.Nodes), len(o.Namespaces), len(o.ServiceCIDRs))
	}
	if _, err := s.Namespaces().Lister().Get("shop"); err != nil {
		t.Error(err)
	}
	await(t, "a change is told for each of the six", func() bool { return changes.Load() == 6 })
}

// As long as one kind cannot be listed, nothing is complete.
func TestNotSyncedWhileOneKindIsMissing(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("list", "endpointslices", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, context.DeadlineExceeded
	})
	s, _ := start(t, client)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.WaitSynced(ctx); err == nil {
		t.Error("synced without EndpointSlices")
	}
}

// A cluster of before Kubernetes 1.33 has no ServiceCIDRs; once it is upgraded, they are seen.
func TestAKindThatTheClusterLearns(t *testing.T) {
	client := fake.NewClientset()
	var knows atomic.Bool
	unknown := func(clienttesting.Action) error {
		if knows.Load() {
			return nil
		}
		return apierrors.NewNotFound(networkingv1.Resource("servicecidrs"), "")
	}
	client.PrependReactor("list", "servicecidrs", func(a clienttesting.Action) (bool, runtime.Object, error) {
		err := unknown(a)
		return err != nil, nil, err
	})
	client.PrependWatchReactor("servicecidrs", func(a clienttesting.Action) (bool, kubewatch.Interface, error) {
		err := unknown(a)
		return err != nil, nil, err
	})
	s, _ := start(t, client)
	if err := s.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	knows.Store(true)
	cidr := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}}
	for deadline := time.Now().Add(3 * lookAgain); ; time.Sleep(100 * time.Millisecond) {
		// Made anew as long as nobody has seen it: this API server does not tell a watch of what is there.
		client.NetworkingV1().ServiceCIDRs().Delete(t.Context(), cidr.Name, metav1.DeleteOptions{})
		if _, err := client.NetworkingV1().ServiceCIDRs().Create(t.Context(), cidr, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if o, err := s.Objects(); err != nil {
			t.Fatal(err)
		} else if len(o.ServiceCIDRs) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not seen")
		}
	}
}

// Without its policies a mesh would allow what they forbid: as long as one kind
// cannot be listed, nothing is complete, and no kind can be left out.
func TestNotSyncedWithoutPolicies(t *testing.T) {
	refused := &cache.ListWatch{
		ListFunc:  func(metav1.ListOptions) (runtime.Object, error) { return nil, context.DeadlineExceeded },
		WatchFunc: func(metav1.ListOptions) (kubewatch.Interface, error) { return nil, context.DeadlineExceeded },
	}
	for name, without := range map[string]func(*Policies, cache.ListerWatcher){
		"PeerAuthentications":    func(p *Policies, l cache.ListerWatcher) { p.PeerAuthentications = l },
		"AuthorizationPolicies":  func(p *Policies, l cache.ListerWatcher) { p.AuthorizationPolicies = l },
		"EgressPolicies":         func(p *Policies, l cache.ListerWatcher) { p.EgressPolicies = l },
		"RequestAuthentications": func(p *Policies, l cache.ListerWatcher) { p.RequestAuthentications = l },
	} {
		policies := noPolicies(t)
		without(&policies, refused)
		s, _ := startWith(t, fake.NewClientset(), policies)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := s.WaitSynced(ctx); err == nil {
			t.Errorf("synced without %s", name)
		}
		without(&policies, nil)
		if _, err := New(fake.NewClientset(), policies, noGateways(t), func() {}); err == nil {
			t.Errorf("made without a source of %s", name)
		}
	}
}

// What people change is told; what we write ourselves is not.
func TestPoliciesAreTold(t *testing.T) {
	policies := noPolicies(t)
	source := policies.EgressPolicies.(*cachetest.FakeControllerSource)
	p := &v1alpha1.EgressPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "out", UID: "1", Generation: 1}}
	source.Add(p.DeepCopy())
	s, changes := startWith(t, fake.NewClientset(), policies)
	if err := s.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the policy is told", func() bool { return changes.Load() == 1 })
	if o, err := s.Objects(); err != nil || len(o.EgressPolicies) != 1 {
		t.Errorf("%d policies, %v", len(o.EgressPolicies), err)
	}
	p.Status.InForce = "1/1"
	source.Modify(p.DeepCopy())
	p.Annotations = map[string]string{v1alpha1.DryRunAnnotation: "true"}
	source.Modify(p.DeepCopy())
	await(t, "the annotation is told", func() bool { return changes.Load() == 2 })
	p.Generation = 2
	source.Modify(p.DeepCopy())
	await(t, "the new spec is told", func() bool { return changes.Load() == 3 })
	source.Delete(p.DeepCopy())
	await(t, "the deletion is told", func() bool { return changes.Load() == 4 })
}

func TestEveryChangeIsTold(t *testing.T) {
	client := fake.NewClientset()
	s, changes := start(t, client)
	if err := s.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	pods := client.CoreV1().Pods("shop")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
	for i, change := range []func() error{
		func() error { _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); return err },
		func() error {
			pod.Labels = map[string]string{"app": "web"}
			_, err := pods.Update(ctx, pod, metav1.UpdateOptions{})
			return err
		},
		func() error { return pods.Delete(ctx, "web", metav1.DeleteOptions{}) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		await(t, "the change is told", func() bool { return changes.Load() == int64(i+1) })
	}
	if o, err := s.Objects(); err != nil || len(o.Pods) != 0 {
		t.Errorf("%d pods, %v", len(o.Pods), err)
	}
}

// A node's sign of life changes nothing that anybody here reads.
func TestHeartbeatsAreNoChange(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: "1"}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	client := fake.NewClientset(node)
	s, changes := start(t, client)
	if err := s.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the node is told", func() bool { return changes.Load() == 1 })

	beat := node.DeepCopy()
	beat.ResourceVersion = "2"
	beat.Status.Conditions[0].LastHeartbeatTime = metav1.Now()
	beat.Status.Images = []corev1.ContainerImage{{SizeBytes: 1}}
	update := func(n *corev1.Node) {
		if _, err := client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	update(beat)
	lost := beat.DeepCopy()
	lost.ResourceVersion = "3"
	lost.Status.Conditions[0].Status = corev1.ConditionUnknown
	update(lost)
	await(t, "the lost node is seen", func() bool {
		n, err := s.Nodes().Lister().Get("n1")
		return err == nil && n.Status.Conditions[0].Status == corev1.ConditionUnknown
	})
	await(t, "the lost node is told", func() bool { return changes.Load() == 2 })
}

func TestPodsAreStripped(t *testing.T) {
	kept := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web", Namespace: "shop", UID: "u", Labels: map[string]string{"app": "web"},
			Annotations:     map[string]string{"ambit.mesh/x": "y"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-5d8"}},
		},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "web", HostNetwork: true},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	full := kept.DeepCopy()
	full.Annotations["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
	full.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	full.Spec.Containers = []corev1.Container{{Name: "web", Env: []corev1.EnvVar{{Name: "SECRET", Value: "x"}}}}
	full.Status.Conditions = append(full.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled})
	full.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "web"}}

	client := fake.NewClientset(full)
	s, _ := start(t, client)
	if err := s.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := s.Objects()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&kept, o.Pods[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
