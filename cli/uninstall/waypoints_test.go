package uninstall

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// What runs for waypoints goes, with what is said on Services; what is the user's stays.
func TestWaypointsAreRemovedAndGatewaysStay(t *testing.T) {
	kinds := map[schema.GroupVersionResource]string{gateway.SchemeGroupVersion.WithResource("gateways"): "GatewayList"}
	for _, kind := range running {
		kinds[kind.resource] = "List"
	}
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds)
	const ours, gatewayName = "app.kubernetes.io/part-of", binding.GatewayLabel
	add := func(resource schema.GroupVersionResource, kind, namespace, name string, labels map[string]string) {
		o := &unstructured.Unstructured{}
		o.SetAPIVersion(resource.GroupVersion().String())
		o.SetKind(kind)
		o.SetNamespace(namespace)
		o.SetName(name)
		o.SetLabels(labels)
		if err := dynamic.Tracker().Create(resource, o, namespace); err != nil {
			t.Fatal(err)
		}
	}
	var (
		deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
		configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
		classes     = gateway.SchemeGroupVersion.WithResource("gatewayclasses")
		gateways    = gateway.SchemeGroupVersion.WithResource("gateways")
	)
	add(deployments, "Deployment", "shop", "waypoint", map[string]string{ours: "ambit", gatewayName: "waypoint"})
	add(deployments, "Deployment", "shop", "front", map[string]string{gatewayName: "front"}) // another class'
	add(deployments, "Deployment", "shop", "cart", nil)
	add(configMaps, "ConfigMap", "shop", "ambit-ca-root", map[string]string{ours: "ambit"})
	add(configMaps, "ConfigMap", "ambit-system", "ambit-ca-root", map[string]string{ours: "ambit"})
	add(configMaps, "ConfigMap", "shop", "theirs", nil)
	add(classes, "GatewayClass", "", "ambit-waypoint", map[string]string{ours: "ambit"})
	add(classes, "GatewayClass", "", "another", nil)
	add(gateways, "Gateway", "shop", "waypoint", nil)

	bound := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"}}
	bound.Status.Conditions = []metav1.Condition{{Type: binding.Condition, Status: metav1.ConditionTrue}}
	typed := fake.NewClientset(bound, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "plain"}})
	var applied []string
	typed.PrependReactor("patch", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		applied = append(applied, a.(clienttesting.PatchAction).GetName()+" "+a.GetSubresource())
		return true, bound, nil
	})

	r := removal{cluster: &kube.Cluster{Typed: typed, Dynamic: dynamic}}
	var told []string
	for range 2 { // once more, as after a failure
		if err := r.removeWaypoints(t.Context(), func(text string) { told = append(told, text) }); err != nil {
			t.Fatal(err)
		}
	}
	var left []string
	for _, resource := range []schema.GroupVersionResource{deployments, configMaps, classes, gateways} {
		list, err := dynamic.Resource(resource).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			left = append(left, resource.Resource+" "+o.GetNamespace()+"/"+o.GetName())
		}
	}
	want := "deployments shop/cart, deployments shop/front, configmaps ambit-system/ambit-ca-root, configmaps shop/theirs, gatewayclasses /another, gateways shop/waypoint"
	if got := strings.Join(left, ", "); got != want {
		t.Errorf("left\n%s, want\n%s", got, want)
	}
	if len(applied) != 2 || applied[0] != "cart status" || len(told) != 1 || told[0] != "waypoint shop/waypoint" {
		t.Errorf("applied %v, told %v", applied, told)
	}
}

// Pods are not let go before clients go straight to them; but what nobody unbinds does not
// keep the rest from going.
func TestWhatIsBoundIsUnboundFirst(t *testing.T) {
	world := func() (removal, *fake.Clientset, *[]string) {
		bound := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"}}
		bound.Status.Conditions = []metav1.Condition{{Type: binding.Condition, Status: metav1.ConditionTrue, Reason: binding.InForce}}
		contested := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "front"}}
		contested.Status.Conditions = []metav1.Condition{{Type: binding.Condition, Status: metav1.ConditionFalse, Reason: binding.PortConflict}}
		typed := fake.NewClientset(bound, contested, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
		dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
			v1alpha1.GroupVersion.WithResource("workloads"): "WorkloadList",
		})
		var labels []string
		typed.PrependReactor("patch", "namespaces", func(a clienttesting.Action) (bool, runtime.Object, error) {
			labels = append(labels, string(a.(clienttesting.PatchAction).GetPatch()))
			return false, nil, nil
		})
		return removal{cluster: &kube.Cluster{Typed: typed, Dynamic: dynamic}, options: Options{Wait: 10 * time.Second}}, typed, &labels
	}
	const want = `{"metadata":{"labels":{"ambit.mesh/removing":"waypoints"}}}`

	r, typed, labels := world()
	asked := 0
	typed.PrependReactor("list", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		if asked++; asked > 2 {
			return true, &corev1.ServiceList{}, nil // the controller is done
		}
		return false, nil, nil
	})
	var told []string
	if err := r.unbind(t.Context(), func(text string) { told = append(told, text) }); err != nil {
		t.Fatal(err)
	}
	if asked != 3 || !slices.Equal(*labels, []string{want}) || !slices.Equal(told, []string{"1 Services and pods still bound", "0 Services and pods still bound"}) {
		t.Errorf("asked %d times, labelled %v, told %v", asked, *labels, told)
	}
	// Once more, as after a failure: nothing is to be done.
	if err := r.unbind(t.Context(), func(string) {}); err != nil || len(*labels) != 1 {
		t.Errorf("once more: %v, labelled %v", err, *labels)
	}

	r, _, labels = world()
	r.options.Wait = 10 * time.Millisecond
	told = nil
	if err := r.unbind(t.Context(), func(text string) { told = append(told, text) }); err != nil {
		t.Fatal(err)
	}
	if len(*labels) != 1 || !strings.Contains(told[len(told)-1], "still bound: until its pods are let go, clients without a waypoint are refused there") {
		t.Errorf("labelled %v, told %v", *labels, told)
	}
	r, typed, _ = world()
	if err := typed.CoreV1().Namespaces().Delete(t.Context(), namespace, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.unbind(t.Context(), func(text string) { told = append(told, text) }); err != nil || told[len(told)-1] != "no controller is there to do it" {
		t.Errorf("without a namespace: %v, told %v", err, told)
	}
}

func TestThereMayBeNoGatewayAPI(t *testing.T) {
	kinds := map[schema.GroupVersionResource]string{}
	for _, kind := range running {
		kinds[kind.resource] = "List"
	}
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds)
	dynamic.PrependReactor("list", "gatewayclasses", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(a.GetResource().GroupResource(), "")
	})
	r := removal{cluster: &kube.Cluster{Typed: fake.NewClientset(), Dynamic: dynamic}}
	if err := r.removeWaypoints(t.Context(), func(string) {}); err != nil {
		t.Fatal(err)
	}
}
