package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/report"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/controller/status"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
	"github.com/ambit-mesh/ambit/controller/watch/watchtest"
)

// From a change in Kubernetes, or in what nodes report, to what a proxy holds.
func TestProxiesFollowKubernetes(t *testing.T) {
	web := pod("web", "10.244.1.5")
	cluster := fake.NewClientset(web, service("shop", "10.96.0.10"), slice("shop", web),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}}})
	c := startController(t, cluster)
	p := c.connect(t)
	ctx := t.Context()

	p.await("the first world", func(m mesh) bool {
		return m.protocol("web") == workload.TunnelProtocol_NONE && m.serves("web", "shop") && m.service("shop") != nil
	})

	c.reports.Seed(types.NamespacedName{Namespace: "shop", Name: "web"}, web.UID, report.Remembered{HBONE: true})
	p.await("the captured pod as HBONE", func(m mesh) bool { return m.protocol("web") == workload.TunnelProtocol_HBONE })

	second := pod("second", "10.244.1.6")
	must(t)(cluster.CoreV1().Pods("shop").Create(ctx, second, metav1.CreateOptions{}))
	must(t)(cluster.DiscoveryV1().EndpointSlices("shop").Update(ctx, slice("shop", web, second), metav1.UpdateOptions{}))
	p.await("a second endpoint", func(m mesh) bool { return m.serves("second", "shop") })

	must(t)(cluster.DiscoveryV1().EndpointSlices("shop").Update(ctx, slice("shop", second), metav1.UpdateOptions{}))
	p.await("the first one out of the service, and still HBONE", func(m mesh) bool {
		return !m.serves("web", "shop") && m.serves("second", "shop") && m.protocol("web") == workload.TunnelProtocol_HBONE
	})

	if err := cluster.CoreV1().Pods("shop").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.await("the deleted pod gone", func(m mesh) bool { return m["Kubernetes//Pod/shop/web"] == nil })

	if err := cluster.CoreV1().Services("shop").Delete(ctx, "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.await("the deleted Service gone", func(m mesh) bool { return m.service("shop") == nil && !m.serves("second", "shop") })
}

// From a policy that somebody writes to the workload that names it, and away again.
func TestProxiesFollowPolicies(t *testing.T) {
	web := pod("web", "10.244.1.5")
	web.Labels = map[string]string{"app": "web"}
	c := startController(t, fake.NewClientset(web))
	p := c.connect(t)
	names := func(m mesh) []string { return m["Kubernetes//Pod/shop/web"].GetWorkload().GetAuthorizationPolicies() }
	p.await("the pod, without policies", func(m mesh) bool { return m["Kubernetes//Pod/shop/web"] != nil && len(names(m)) == 0 })

	deny := &v1alpha1.AuthorizationPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny", UID: "1", Generation: 1},
		Spec: v1alpha1.AuthorizationPolicySpec{
			Selector: &v1alpha1.WorkloadSelector{MatchLabels: map[string]v1alpha1.LabelValue{"app": "web"}},
			Action:   v1alpha1.AuthorizationDeny, Rules: []v1alpha1.AuthorizationRule{{}},
		},
	}
	c.policies.AuthorizationPolicies.Add(deny)
	p.await("the policy on the pod", func(m mesh) bool { return slices.Equal(names(m), []string{"shop/deny"}) })
	if got := <-c.outcomes; len(got) > 0 {
		t.Errorf("before the policy, %d outcomes", len(got))
	}
	for got := range c.outcomes {
		if len(got) == 1 && got[0].Name == "deny" && got[0].Workloads == 1 {
			break
		}
	}
	c.policies.AuthorizationPolicies.Delete(deny)
	p.await("the policy gone from the pod", func(m mesh) bool { return len(names(m)) == 0 })
}

// Those who tell people learn since when a pod is to be captured: since this process has seen that, however often it publishes.
func TestOutcomesKnowSinceWhenAPodIsEnrolled(t *testing.T) {
	web := pod("web", "10.244.1.5")
	cluster := fake.NewClientset(web)
	c := startController(t, cluster)
	policy := &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny", UID: "1", Generation: 1}}
	c.policies.AuthorizationPolicies.Add(policy)
	since := func(generation int64, enrolled int) (since time.Time) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case got := <-c.outcomes:
				if len(got) == 1 && got[0].Generation == generation && len(got[0].Uncaptured["n1"]) == enrolled {
					return append(got[0].Uncaptured["n1"], time.Time{})[0]
				}
			case <-deadline:
				t.Fatalf("never: generation %d with %d pods that are not captured", generation, enrolled)
			}
		}
	}
	since(1, 0)
	web = web.DeepCopy()
	before := time.Now()
	web.Labels = map[string]string{status.Label: "ambient"}
	must(t)(cluster.CoreV1().Pods("shop").Update(t.Context(), web, metav1.UpdateOptions{}))
	first := since(1, 1)
	if first.Before(before) || first.After(time.Now()) {
		t.Errorf("enrolled at %s, said %s", before, first)
	}
	policy = policy.DeepCopy()
	policy.Generation = 2
	c.policies.AuthorizationPolicies.Modify(policy)
	if second := since(2, 1); !second.Equal(first) {
		t.Errorf("enrolled since %s, and then since %s", first, second)
	}
	c.reports.Seed(types.NamespacedName{Namespace: "shop", Name: "web"}, web.UID, report.Remembered{HBONE: true})
	since(2, 0)
}

// What report waits for: a publication without the pod's HBONE, by its number.
func TestWithdrawalLearnsItsPublication(t *testing.T) {
	web := pod("web", "10.244.1.5")
	c := startController(t, fake.NewClientset(web))
	name := types.NamespacedName{Namespace: "shop", Name: "web"}
	c.reports.Seed(name, web.UID, report.Remembered{HBONE: true})
	p := c.connect(t)
	p.await("HBONE", func(m mesh) bool { return m.protocol("web") == workload.TunnelProtocol_HBONE })

	c.reports.Seed(name, web.UID, report.Remembered{})
	withdrawn := c.reports.Captured().Generation()
	publication := c.told.await(t, withdrawn)
	p.await("plain TCP", func(m mesh) bool { return m.protocol("web") == workload.TunnelProtocol_NONE })
	for deadline := time.Now().Add(10 * time.Second); len(c.server.AckedBy(publication)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the publication is never acknowledged")
		}
	}
}

// controller is a publisher with everything around it, on a fake cluster.
type controller struct {
	server   *push.Server
	reports  *report.Registry
	told     *told
	address  *bufconn.Listener
	policies *watchtest.Policies
	outcomes chan []*translate.Policy
}

// told passes on to the registry what the publisher tells, and remembers it.
type told struct {
	*report.Registry
	mu           sync.Mutex
	publications map[uint64]uint64 // by generation; guarded by mu
}

func (t *told) Published(p report.Publication) {
	t.Registry.Published(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.publications[p.Generation] = p.Number
}

func (t *told) await(test *testing.T, generation uint64) uint64 {
	test.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		t.mu.Lock()
		publication, ok := t.publications[generation]
		t.mu.Unlock()
		if ok {
			return publication
		}
	}
	test.Fatalf("generation %d is never published", generation)
	return 0
}

type anybody struct{}

func (anybody) Authenticate(context.Context) (push.Peer, error) {
	return push.Peer{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "ztunnel-1", Node: "n1"}, nil
}

func startController(t *testing.T, cluster *fake.Clientset) *controller {
	t.Helper()
	logger, changes := slog.New(slog.DiscardHandler), watch.NewTrigger()
	policies := watchtest.New()
	t.Cleanup(policies.Close)
	sources, err := watch.New(cluster, policies.Sources(), watchtest.GatewayAPI(), changes.Changed)
	if err != nil {
		t.Fatal(err)
	}
	c := &controller{policies: policies, outcomes: make(chan []*translate.Policy, 100), address: bufconn.Listen(1 << 16)}
	c.server = push.New(push.Config{Authenticator: anybody{}, Namespace: "ambit-system", ServiceAccount: "ztunnel", Logger: logger})
	c.reports = report.NewRegistry(report.RegistryConfig{Acks: acks{c.server}, Logger: logger})
	c.reports.OnCaptured(func(types.NamespacedName) { changes.Changed() })
	c.told = &told{Registry: c.reports, publications: make(map[uint64]uint64)}
	publisher := newPublisher(sources, c.told, c.server, changes, translate.Config{
		TrustDomain: "cluster.local", ClusterID: "Kubernetes", ClusterDomain: "cluster.local", SystemNamespace: "ambit-system",
	}, logger, prometheus.NewRegistry())
	publisher.outcomes = func(r translate.Result) { c.outcomes <- r.Policies }

	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, c.server)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { grpcServer.Serve(c.address) })
	running.Go(func() { sources.Run(ctx) })
	if err := sources.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	changes.Changed()
	running.Go(func() { publisher.Run(ctx) })
	t.Cleanup(func() { stop(); grpcServer.Stop(); running.Wait() })
	return c
}

// proxy applies what it is sent, as a data plane would.
type proxy struct {
	t         *testing.T
	stream    discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	responses chan *discovery.DeltaDiscoveryResponse
	mesh      mesh
}

func (c *controller) connect(t *testing.T) *proxy {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.address.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address}); err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, stream: stream, responses: make(chan *discovery.DeltaDiscoveryResponse, 10), mesh: make(mesh)}
	go func() {
		for {
			response, err := stream.Recv()
			if err != nil {
				return
			}
			p.responses <- response
		}
	}()
	return p
}

// await applies responses until the mesh is as described.
func (p *proxy) await(what string, condition func(mesh) bool) {
	p.t.Helper()
	deadline := time.After(10 * time.Second)
	for !condition(p.mesh) {
		select {
		case response := <-p.responses:
			p.apply(response)
		case <-deadline:
			p.t.Fatalf("never: %s; the proxy has %v", what, p.mesh)
		}
	}
}

func (p *proxy) apply(response *discovery.DeltaDiscoveryResponse) {
	p.t.Helper()
	for _, name := range response.RemovedResources {
		delete(p.mesh, name)
	}
	for _, r := range response.Resources {
		address := &workload.Address{}
		if err := r.Resource.UnmarshalTo(address); err != nil {
			p.t.Fatal(err)
		}
		p.mesh[r.Name] = address
	}
	if err := p.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: response.TypeUrl, ResponseNonce: response.Nonce}); err != nil {
		p.t.Fatal(err)
	}
}

// mesh is what a proxy holds.
type mesh map[string]*workload.Address

func (m mesh) protocol(pod string) workload.TunnelProtocol {
	if w := m["Kubernetes//Pod/shop/"+pod].GetWorkload(); w != nil {
		return w.TunnelProtocol
	}
	return -1
}

func (m mesh) service(name string) *workload.Service {
	return m[fmt.Sprintf("shop/%s.shop.svc.cluster.local", name)].GetService()
}

func (m mesh) serves(pod, service string) bool {
	_, ok := m["Kubernetes//Pod/shop/"+pod].GetWorkload().GetServices()[fmt.Sprintf("shop/%s.shop.svc.cluster.local", service)]
	return ok
}

func pod(name, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "default"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func service(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func slice(service string, pods ...*corev1.Pod) *discoveryv1.EndpointSlice {
	port, name := int32(8080), "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: service + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.Status.PodIPs[0].IP},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		})
	}
	return s
}

func must(t *testing.T) func(any, error) {
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Who takes over waits for a publication that began after it asked, not for one
// that was under way with what was known before.
func TestAFreshPublicationBeganAfterItWasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &publisher{changes: watch.NewTrigger(), another: make(chan struct{})}
		underWay := p.begin()
		done := make(chan error, 1)
		go func() { done <- p.fresh(t.Context()) }()
		synctest.Wait()
		p.finish(underWay)
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("content with a publication that began before")
		default:
		}
		p.finish(p.begin())
		if err := <-done; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := p.fresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with nobody who publishes: %v", err)
		}
	})
}

// A pod takes plaintext before it is let go if both want it to go, the labels and its node; about whom they do not agree
// yet, others that leave wait for.
func TestAPodLeavesIfLabelsAndNodeAgree(t *testing.T) {
	registry := report.NewRegistry(report.RegistryConfig{})
	var objects watch.Objects
	for name, labelled := range map[string]bool{"both": false, "node-alone": true, "labels-alone": false, "neither": true} {
		p := pod(name, "10.244.1.5")
		if labelled {
			p.Labels = map[string]string{status.Label: "ambient"}
		}
		objects.Pods = append(objects.Pods, p)
		asks := name == "both" || name == "node-alone"
		registry.Seed(types.NamespacedName{Namespace: "shop", Name: name}, p.UID, report.Remembered{HBONE: true, Leaving: asks})
	}
	objects.Namespaces = []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}}
	enrolled := status.Enrolled(objects.Pods, objects.Namespaces, "ambit-system", nil, time.Now())
	leaving, disagreed := agree(objects, registry.Captured(), enrolled, "ambit-system")
	if len(leaving) != 1 || !leaving.Has("uid-both") || disagreed != 2 {
		t.Errorf("%v leave, and %d are not agreed about", leaving, disagreed)
	}
}
