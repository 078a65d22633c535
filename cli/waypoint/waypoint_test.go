package waypoint

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
	"github.com/ambit-mesh/ambit/internal/binding"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("differs from %s (-want +got); `go test -update` if it is meant to:\n%s", path, diff)
	}
}

const gatewayText = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, generation: 2, labels: {team: shop}}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status:
  addresses: [{type: IPAddress, value: 10.96.0.2}]
  conditions:
  - {type: Accepted, status: "True", reason: Accepted, observedGeneration: 2, lastTransitionTime: "2027-01-01T00:00:00Z", message: ""}
  - {type: Programmed, status: "True", reason: Programmed, observedGeneration: 2, lastTransitionTime: "2027-01-01T00:00:00Z", message: 2 of 2 pods are ready}
`

// objects of the dynamic client.
func objects(t *testing.T, texts ...string) (all []*unstructured.Unstructured) {
	t.Helper()
	for _, text := range texts {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

func clusterOf(custom []*unstructured.Unstructured, core ...runtime.Object) *kube.Cluster {
	kinds := map[schema.GroupVersionResource]string{
		resource: "GatewayList", v1alpha1.GroupVersion.WithResource("workloads"): "WorkloadList",
	}
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds)
	for _, o := range custom {
		for plural, kind := range kinds { // the fake would guess `gatewaies`
			if kind != o.GetKind()+"List" {
				continue
			}
			if err := dynamic.Tracker().Create(plural, o, o.GetNamespace()); err != nil {
				panic(err)
			}
		}
	}
	return &kube.Cluster{Typed: fake.NewClientset(core...), Dynamic: dynamic}
}

func namespace(name string, labels ...string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labelsOf(labels)}}
}

func labelsOf(pairs []string) map[string]string {
	labels := map[string]string{}
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		labels[key] = value
	}
	return labels
}

func service(namespace, name, reason, message string, labels ...string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labelsOf(labels)}}
	if reason != "" {
		status := metav1.ConditionFalse
		if reason == binding.InForce {
			status = metav1.ConditionTrue
		}
		s.Status.Conditions = []metav1.Condition{{Type: binding.Condition, Status: status, Reason: reason, Message: message}}
	}
	return s
}

// shop is a namespace with all sorts of what can be bound.
func shop(t *testing.T) *kube.Cluster {
	return clusterOf(objects(t, gatewayText, `
apiVersion: ambit.mesh/v1alpha1
kind: Workload
metadata: {name: db-0, namespace: shop}
status: {state: Captured, binding: InForce}
`, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wide, namespace: infra, generation: 1, labels: {ambit.mesh/waypoint-for: all}}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
`, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: infra}
spec: {gatewayClassName: another}
`),
		namespace("shop", "ambit.mesh/use-waypoint=waypoint", "ambit.mesh/dataplane-mode=ambient"), namespace("infra"),
		service("shop", "cart", binding.InForce, "clients go through waypoint shop/waypoint, and nobody else is let in"),
		service("shop", "till", binding.NotCaptured, "whoever addresses its endpoints gets past it: 1 of them are not captured"),
		service("shop", "fresh", "", "", "ambit.mesh/use-waypoint=waypoint"),
		service("shop", "plain", binding.PortConflict, "uses port 80 of pods behind waypoint shop/waypoint: it is not bound itself", "ambit.mesh/use-waypoint=none"),
		service("shop", "waypoint", "", "", "gateway.networking.k8s.io/gateway-name=waypoint"),
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", Labels: labelsOf([]string{"ambit.mesh/use-waypoint=waypoint"})}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart-0"}},
	)
}

func TestShow(t *testing.T) {
	for name, print := range map[string]func(*bytes.Buffer) error{
		"list":      func(out *bytes.Buffer) error { return PrintList(t.Context(), shop(t), "", "", out) },
		"list-json": func(out *bytes.Buffer) error { return PrintList(t.Context(), shop(t), "shop", "json", out) },
		"list-none": func(out *bytes.Buffer) error { return PrintList(t.Context(), shop(t), "empty", "", out) },
		"status":    func(out *bytes.Buffer) error { return PrintStatus(t.Context(), shop(t), "shop", "waypoint", "", out) },
		"status-fresh": func(out *bytes.Buffer) error {
			return PrintStatus(t.Context(), shop(t), "infra", "wide", "", out)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := print(&out); err != nil {
				t.Fatal(err)
			}
			golden(t, name, out.String())
		})
	}
	if err := PrintStatus(t.Context(), shop(t), "infra", "front", "", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "no waypoint infra/front") {
		t.Errorf("a Gateway of another class is shown as a waypoint: %v", err)
	}
}

func TestApply(t *testing.T) {
	other := strings.ReplaceAll(gatewayText, "gatewayClassName: ambit-waypoint", "gatewayClassName: another")
	broken := strings.ReplaceAll(gatewayText, "port: 15008", "port: 80")
	for name, test := range map[string]struct {
		cluster *kube.Cluster
		options Options
		err     string
		// after are what the Gateway and the namespace must have.
		after string
	}{
		"apply-new":    {clusterOf(nil, namespace("shop")), Options{}, "", `{"class":"ambit-waypoint","for":"service","from":"Same","label":""}`},
		"apply-enroll": {clusterOf(objects(t, gatewayText), namespace("shop")), Options{For: "all", AllowNamespaces: "all", EnrollNamespace: true}, "", `{"class":"ambit-waypoint","for":"all","from":"All","label":"waypoint"}`},
		"apply-same": {clusterOf(objects(t, gatewayText), namespace("shop", "ambit.mesh/use-waypoint=waypoint", "ambit.mesh/dataplane-mode=ambient")),
			Options{EnrollNamespace: true}, "", `{"class":"ambit-waypoint","for":"","from":"","label":"waypoint"}`},
		"apply-change":   {clusterOf(objects(t, gatewayText), namespace("shop")), Options{For: "workload", AllowNamespaces: "all"}, "", `{"class":"ambit-waypoint","for":"workload","from":"All","label":""}`},
		"apply-listener": {clusterOf(objects(t, broken), namespace("shop")), Options{}, "", `{"class":"ambit-waypoint","for":"","from":"Same","label":""}`},
		"apply-theirs":   {clusterOf(objects(t, other), namespace("shop")), Options{}, "of class another", ""},
		"apply-another": {clusterOf(nil, namespace("shop", "ambit.mesh/use-waypoint=wide", "ambit.mesh/use-waypoint-namespace=infra")),
			Options{EnrollNamespace: true}, "uses waypoint infra/wide", ""},
		"apply-nowhere":   {clusterOf(nil), Options{}, `namespaces "shop" not found`, ""},
		"apply-bad-for":   {clusterOf(nil, namespace("shop")), Options{For: "pods"}, "service, workload or all", ""},
		"apply-bad-allow": {clusterOf(nil, namespace("shop")), Options{AllowNamespaces: "some"}, "same or all", ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.options.Namespace, test.options.Name = "shop", DefaultName
			var out bytes.Buffer
			err := Apply(t.Context(), test.cluster, test.options, term.Plain(&out))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				if test.after == "" && len(writes(test.cluster)) > 0 {
					t.Errorf("it was refused, and wrote %v", writes(test.cluster))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, regexp.MustCompile(`\([0-9.ms]+\)`).ReplaceAllString(out.String(), "(TIME)"))
			if diff := cmp.Diff(test.after, after(t, test.cluster)); diff != "" {
				t.Errorf("what is there (-want +got):\n%s", diff)
			}
			// Once more changes nothing.
			before := len(writes(test.cluster))
			if err := Apply(t.Context(), test.cluster, test.options, term.Plain(&bytes.Buffer{})); err != nil || len(writes(test.cluster)) != before {
				t.Errorf("a second time: %v, writes %v", err, writes(test.cluster)[before:])
			}
		})
	}
}

// writes are the requests that change something.
func writes(cluster *kube.Cluster) (all []string) {
	for _, actions := range [][]clienttesting.Action{cluster.Typed.(*fake.Clientset).Actions(), cluster.Dynamic.(*dynamicfake.FakeDynamicClient).Actions()} {
		for _, a := range actions {
			if verb := a.GetVerb(); verb != "get" && verb != "list" {
				all = append(all, verb+" "+a.GetResource().Resource)
			}
		}
	}
	return all
}

func after(t *testing.T, cluster *kube.Cluster) string {
	t.Helper()
	g, err := cluster.Dynamic.Resource(resource).Namespace("shop").Get(t.Context(), DefaultName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := cluster.Typed.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := decode(g)
	if err != nil {
		t.Fatal(err)
	}
	from := ""
	if l := decoded.Spec.Listeners; len(l) != 1 || l[0].Name != binding.Listener || l[0].Port != binding.Port || l[0].Protocol != binding.Protocol {
		t.Errorf("listeners %+v", l)
	} else if r := l[0].AllowedRoutes; r != nil && r.Namespaces != nil {
		from = string(*r.Namespaces.From)
	}
	return `{"class":"` + string(decoded.Spec.GatewayClassName) + `","for":"` + g.GetLabels()[binding.ForLabel] + `","from":"` + from + `","label":"` + n.Labels[binding.Label] + `"}`
}

func TestApplyWaits(t *testing.T) {
	condition := func(kind string, status metav1.ConditionStatus, reason, message string, generation int64) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: generation}
	}
	accepted := condition("Accepted", metav1.ConditionTrue, "Accepted", "", 2)
	programmed := condition("Programmed", metav1.ConditionTrue, "Programmed", "1 of 1 pods are ready", 2)
	for name, test := range map[string]struct {
		view View
		done bool
		text string
		err  string
	}{
		"nobody said anything":  {View{}, false, "no controller", ""},
		"of an older version":   {View{Conditions: []metav1.Condition{condition("Accepted", metav1.ConditionTrue, "Accepted", "", 1), programmed}}, false, "no controller", ""},
		"refused":               {View{Conditions: []metav1.Condition{condition("Accepted", metav1.ConditionFalse, "ListenersNotValid", "spec.listeners", 2), programmed}}, false, "", "spec.listeners"},
		"no pod":                {View{Conditions: []metav1.Condition{accepted, condition("Programmed", metav1.ConditionFalse, "Pending", "0 of 1", 2)}}, false, "0 of 1", ""},
		"programmed":            {View{Conditions: []metav1.Condition{accepted, programmed}}, true, "1 of 1 pods", ""},
		"not in force yet":      {View{Conditions: []metav1.Condition{accepted, programmed}, Bound: []Bound{{Kind: "Service", Name: "cart", State: binding.Pending}}}, false, "cart", ""},
		"not known yet":         {View{Conditions: []metav1.Condition{accepted, programmed}, Bound: []Bound{{Kind: "Service", Name: "cart", State: Unknown}}}, false, "cart", ""},
		"as far as it ever is":  {View{Conditions: []metav1.Condition{accepted, programmed}, Bound: []Bound{{Kind: "Service", State: binding.NotCaptured}, {Kind: "Service", State: binding.InForce, InForce: true}}}, true, "1 of 2", ""},
		"pods out of the mesh":  {View{Conditions: []metav1.Condition{accepted, programmed}, Bound: []Bound{{Kind: "Pod", State: Unknown}}}, true, "0 of 1", ""},
		"nobody took it as yet": {View{Conditions: []metav1.Condition{condition("Accepted", metav1.ConditionUnknown, "Pending", "Waiting for controller", 2), condition("Programmed", metav1.ConditionUnknown, "Pending", "", 2)}}, false, "no controller", ""},
	} {
		test.view.generation = 2
		p, err := progress(&test.view)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		if err != nil || p.Done != test.done || !strings.Contains(p.Text, test.text) {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
	cluster := clusterOf(objects(t, gatewayText), namespace("shop"))
	var out bytes.Buffer
	err := Apply(t.Context(), cluster, Options{Namespace: "shop", Name: DefaultName, Wait: time.Minute}, term.Plain(&out))
	if err != nil || !strings.Contains(out.String(), "2 of 2 pods are ready") {
		t.Errorf("%v\n%s", err, out.String())
	}
	// A namespace is not bound to what would refuse all of it.
	silent := clusterOf(nil, namespace("shop"))
	err = Apply(t.Context(), silent, Options{Namespace: "shop", Name: DefaultName, Wait: time.Millisecond, EnrollNamespace: true}, term.Plain(&out))
	if err == nil || !strings.Contains(err.Error(), "gave up waiting") || !strings.Contains(err.Error(), "not bound to it yet") {
		t.Errorf("without a controller: %v", err)
	}
	if got := writes(silent); len(got) != 1 || got[0] != "create gateways" {
		t.Errorf("without a controller: %v", got)
	}
}

// What would be refused without it keeps a waypoint from being deleted, and is named.
func TestDelete(t *testing.T) {
	cluster := shop(t)
	var out bytes.Buffer
	err := Delete(t.Context(), cluster, "shop", "waypoint", false, term.Plain(&out))
	if err == nil || len(writes(cluster)) > 0 {
		t.Fatalf("deleted although it is in use: %v %v", err, writes(cluster))
	}
	golden(t, "delete-refused", err.Error()+"\n")
	if err := Delete(t.Context(), cluster, "shop", "waypoint", true, term.Plain(&out)); err != nil {
		t.Fatal(err)
	}
	golden(t, "delete-forced", out.String())
	if err := Delete(t.Context(), cluster, "shop", "waypoint", true, term.Plain(&out)); err == nil {
		t.Error("deleted twice")
	}
	out.Reset()
	if err := Delete(t.Context(), cluster, "infra", "wide", false, term.Plain(&out)); err != nil || out.String() != "√ Gateway infra/wide deleted, and what runs for it\n" {
		t.Errorf("one that nobody uses: %v %s", err, out.String())
	}
	if err := Delete(t.Context(), cluster, "infra", "front", true, term.Plain(&out)); err == nil {
		t.Error("a Gateway of another class is deleted")
	}
}

func TestWithoutTheGatewayAPI(t *testing.T) {
	cluster := clusterOf(nil, namespace("shop"))
	cluster.Dynamic.(*dynamicfake.FakeDynamicClient).PrependReactor("list", "gateways", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(resource.GroupResource(), "")
	})
	var out bytes.Buffer
	if err := Apply(t.Context(), cluster, Options{Namespace: "shop", Name: DefaultName}, term.Plain(&out)); !errors.Is(err, ErrNoGatewayAPI) {
		t.Errorf("apply: %v", err)
	}
	if err := PrintList(t.Context(), cluster, "", "", &out); !errors.Is(err, ErrNoGatewayAPI) {
		t.Errorf("list: %v", err)
	}
}
