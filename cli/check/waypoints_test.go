package check

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
)

// custom adds objects of the Gateway API, as YAML, to a cluster.
func custom(t *testing.T, cluster *kube.Cluster, texts ...string) *kube.Cluster {
	t.Helper()
	plurals := map[string]string{"Gateway": "gateways", "Workload": "workloads"}
	for _, k := range routeKinds {
		plurals[k.kind] = k.plural
	}
	kinds := map[schema.GroupVersionResource]string{v1alpha1.GroupVersion.WithResource("workloads"): "WorkloadList"}
	for kind, plural := range plurals {
		if kind != "Workload" {
			kinds[gateway.SchemeGroupVersion.WithResource(plural)] = kind + "List"
		}
	}
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds)
	for _, text := range texts {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
			t.Fatal(err)
		}
		o.SetAPIVersion(gateway.SchemeGroupVersion.String())
		if err := dynamic.Tracker().Create(gateway.SchemeGroupVersion.WithResource(plurals[o.GetKind()]), o, o.GetNamespace()); err != nil {
			t.Fatal(err)
		}
	}
	cluster.Dynamic = dynamic
	return cluster
}

// withoutGatewayAPI has a cluster not know Gateways.
func withoutGatewayAPI(cluster *kube.Cluster) *kube.Cluster {
	cluster.Dynamic.(*dynamicfake.FakeDynamicClient).PrependReactor("list", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(a.GetResource().GroupResource(), "")
	})
	return cluster
}

func waypointText(namespace, name, from, conditions string) string {
	return fmt.Sprintf(`
kind: Gateway
metadata: {name: %s, namespace: %s, generation: 1, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: %s}}}]
status: {conditions: [%s]}
`, name, namespace, from, conditions)
}

const (
	acceptedText   = `{type: Accepted, status: "True", reason: Accepted}`
	programmedText = acceptedText + `, {type: Programmed, status: "True", reason: Programmed}`
	emptyText      = acceptedText + `, {type: Programmed, status: "False", reason: Pending, message: 0 of 2 pods are ready}`
)

func using(waypoint string, more ...string) map[string]string {
	labels := map[string]string{"ambit.mesh/use-waypoint": waypoint}
	if len(more) > 0 {
		labels["ambit.mesh/use-waypoint-namespace"] = more[0]
	}
	return labels
}

func TestWaypointsWithoutTheGatewayAPI(t *testing.T) {
	cluster := withoutGatewayAPI(custom(t, clusterOf(namespace("shop", using("waypoint")), pod("shop", "db", using("waypoint")))))
	findings, err := askGatewayAPI(t.Context(), cluster)
	wantFindings(t, findings, err, "error|Namespace shop and 1 more|connections are refused|standard-install.yaml")
	for name, ask := range map[string]func() ([]Finding, error){
		"labels":    func() ([]Finding, error) { return askWaypointLabels(t.Context(), cluster) },
		"waypoints": func() ([]Finding, error) { return askWaypoints(t.Context(), cluster) },
		"routes":    func() ([]Finding, error) { return askRoutes(t.Context(), cluster) },
	} {
		if findings, err := ask(); err != nil || len(findings) > 0 {
			t.Errorf("%s say it again: %v %v", name, findings, err)
		}
	}
	unused := withoutGatewayAPI(custom(t, clusterOf(namespace("shop", using("none")), namespace("plain", nil))))
	findings, err = askGatewayAPI(t.Context(), unused)
	wantFindings(t, findings, err)
}

func TestLabelsThatNameAWaypoint(t *testing.T) {
	cluster := custom(t, clusterOf(
		namespace("shop", using("waypoint")), namespace("web", using("waypoint", "infra")), namespace("far", using("waypoint", "shop")),
		namespace("typo", using("waipoint")), namespace("off", using("none")),
		pod("shop", "db", using("other")),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "far", Name: "cart", Labels: using("waypoint", "nowhere")}},
	), waypointText("shop", "waypoint", "Same", programmedText), waypointText("infra", "waypoint", "All", programmedText))
	findings, err := askWaypointLabels(t.Context(), cluster)
	wantFindings(t, findings, err,
		"error|Namespace far|shop/waypoint|does not allow|--allow-namespaces all",
		"error|Namespace typo|typo/waipoint, which does not exist|apply -n typo --name waipoint",
		"error|Service far/cart|nowhere/waypoint",
		"error|Pod shop/db|shop/other, which does not exist",
	)
}

func TestWaypointsThatAreNotProgrammed(t *testing.T) {
	for name, test := range map[string]struct {
		conditions string
		labels     map[string]string
		want       []string
	}{
		"well":             {programmedText, nil, nil},
		"nobody is ready":  {emptyText, using("waypoint"), []string{"error|Gateway shop/waypoint|0 of 2 pods|get pods"}},
		"and nobody cares": {emptyText, nil, []string{"warning|0 of 2 pods"}},
		"refused":          {`{type: Accepted, status: "False", reason: ListenersNotValid, message: "spec.listeners: has 2"}, {type: Programmed, status: "False"}`, nil, []string{"warning|spec.listeners: has 2|mend"}},
		"nobody looked":    {`{type: Accepted, status: Unknown, reason: Pending}, {type: Programmed, status: Unknown, reason: Pending}`, nil, []string{"warning|no controller"}},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := custom(t, clusterOf(namespace("shop", test.labels), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"}}),
				waypointText("shop", "waypoint", "Same", test.conditions))
			findings, err := askWaypoints(t.Context(), cluster)
			wantFindings(t, findings, err, test.want...)
		})
	}
}

func TestRoutesOfServices(t *testing.T) {
	parent := `{group: "", kind: Service, name: cart}`
	status := func(controller string, conditions string) string {
		return fmt.Sprintf(`{controllerName: %s, parentRef: %s, conditions: [%s]}`, controller, parent, conditions)
	}
	const ours, theirs = "ambit.mesh/waypoint", "example.com/mesh"
	resolved := `{type: ResolvedRefs, status: "True", observedGeneration: 2}`
	good := `{type: Accepted, status: "True", observedGeneration: 2}, `
	for name, test := range map[string]struct {
		parent, statuses string
		want             []string
	}{
		"well":                       {parent, status(ours, good+resolved), nil},
		"without a waypoint":         {parent, status(ours, `{type: Accepted, status: "False", reason: NoWaypoint, observedGeneration: 2}, `+resolved), []string{"error|HTTPRoute shop/r|at Service shop/cart|no waypoint stands before it|label service cart"}},
		"another mesh has taken it":  {parent, status(theirs, good+resolved) + "," + status(ours, `{type: Accepted, status: "False", reason: NoWaypoint, observedGeneration: 2}`), nil},
		"another mesh has not":       {parent, status(theirs, `{type: Accepted, status: "False"}`) + "," + status(ours, `{type: Accepted, status: "False", reason: NoWaypoint, observedGeneration: 2}`), []string{"error|no waypoint"}},
		"nobody said anything":       {parent, "", []string{"error|nobody has said anything"}},
		"nobody said anything newer": {parent, status(ours, `{type: Accepted, status: "True", observedGeneration: 1}`), []string{"error|nobody has said anything"}},
		"a backend that is not":      {parent, status(ours, good+`{type: ResolvedRefs, status: "False", reason: BackendNotFound, message: no Service shop/x, observedGeneration: 2}`), []string{"warning|BackendNotFound: no Service shop/x"}},
		"of a part":                  {parent, status(ours, good+resolved+`, {type: PartiallyInvalid, status: "True", reason: UnsupportedValue, message: "spec.rules[0]", observedGeneration: 2}`), []string{"warning|spec.rules[0]"}},
		"at a Gateway":               {`{name: front}`, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := custom(t, clusterOf(), fmt.Sprintf(`
kind: HTTPRoute
metadata: {name: r, namespace: shop, generation: 2, creationTimestamp: "2020-01-01T00:00:00Z"}
spec: {parentRefs: [%s]}
status: {parents: [%s]}
`, test.parent, test.statuses))
			findings, err := askRoutes(t.Context(), cluster)
			wantFindings(t, findings, err, test.want...)
		})
	}
}

func TestBindings(t *testing.T) {
	long := metav1.NewTime(time.Now().Add(-time.Hour))
	service := func(name, reason string, since metav1.Time) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		s.Status.Conditions = []metav1.Condition{{Type: "ambit.mesh/Bound", Status: "False", Reason: reason, Message: "because", LastTransitionTime: since}}
		return s
	}
	behind := service("g-behind", "InForce", long)
	behind.Status.Conditions = append(behind.Status.Conditions, metav1.Condition{Type: "ambit.mesh/Ready", Status: "False", Reason: "NotAcknowledged", Message: "one is behind", LastTransitionTime: long})
	findings, err := askBindings(t.Context(), clusterOf(
		service("a-well", "InForce", long), service("b-contested", "PortConflict", metav1.Now()), service("c-open", "NotCaptured", long),
		service("d-just", "Pending", metav1.Now()), service("e-long", "Pending", long), service("f-direct", "Direct", long), behind,
	))
	wantFindings(t, findings, err,
		"error|Service shop/b-contested|because|targetPort", "warning|Service shop/c-open|because|dataplane-mode", "warning|Service shop/e-long|because|ztunnel",
		"warning|Service shop/g-behind|one is behind|logs")
}
