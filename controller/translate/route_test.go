package translate

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// Every file in testdata/routes is a promise: Services and routes in NAME.yaml,
// what waypoints are told and what the routes' status says in NAME.golden. Services
// are behind a waypoint if their labels say so.
func TestRoutes(t *testing.T) {
	for _, name := range routeCases(t) {
		t.Run(name, func(t *testing.T) {
			services, routes := readRoutes(t, name)
			got := renderRoutes(t, indexRoutes(routes, services, isBound))
			path := filepath.Join("testdata", "routes", name+".golden")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("differs from %s (-want +got); `go test -update` if it is meant to:\n%s", path, diff)
			}
		})
	}
}

func TestRoutesDoNotDependOnOrder(t *testing.T) {
	for _, name := range routeCases(t) {
		services, routes := readRoutes(t, name)
		want := renderRoutes(t, indexRoutes(routes, services, isBound))
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 0))
			r.Shuffle(len(routes.HTTP), func(i, j int) { routes.HTTP[i], routes.HTTP[j] = routes.HTTP[j], routes.HTTP[i] })
			r.Shuffle(len(routes.GRPC), func(i, j int) { routes.GRPC[i], routes.GRPC[j] = routes.GRPC[j], routes.GRPC[i] })
			if diff := cmp.Diff(string(want), string(renderRoutes(t, indexRoutes(routes, services, isBound)))); diff != "" {
				t.Fatalf("%s, seed %d (-want +got):\n%s", name, seed, diff)
			}
		}
	}
}

// A rule that cannot be carried out is there, and says why: if it were left out,
// its requests would take the way of another rule.
func TestEveryRuleIsSent(t *testing.T) {
	for _, name := range routeCases(t) {
		services, routes := readRoutes(t, name)
		index := indexRoutes(routes, services, isBound)
		sent := make(map[string]int)
		for _, all := range index.byService {
			for _, r := range all {
				sent[fmt.Sprint(r.Kind, r.Namespace, "/", r.Name)] = len(r.Rules)
			}
		}
		for _, o := range routes.HTTP {
			if n, ok := sent[fmt.Sprint(mesh.Route_HTTP, o.Namespace, "/", o.Name)]; ok && n != len(o.Spec.Rules) {
				t.Errorf("%s: %d of the %d rules of %s are sent", name, n, len(o.Spec.Rules), o.Name)
			}
		}
	}
}

func isBound(s *service) bool { return s.Labels[binding.Label] != "" }

func routeCases(t *testing.T) []string {
	files, err := filepath.Glob("testdata/routes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".yaml")
	}
	return files
}

func readRoutes(t *testing.T, name string) (*serviceIndex, Routes) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "routes", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, gateway.Install} {
		if err := add(known); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(known).UniversalDeserializer()
	var services []*corev1.Service
	var routes Routes
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, document)
		}
		switch o := object.(type) {
		case *corev1.Service:
			services = append(services, o)
		case *gateway.HTTPRoute:
			routes.HTTP = append(routes.HTTP, o)
		case *gateway.GRPCRoute:
			routes.GRPC = append(routes.GRPC, o)
		case *gateway.TLSRoute:
			routes.TLS = append(routes.TLS, o)
		case *gateway.TCPRoute:
			routes.TCP = append(routes.TCP, o)
		default:
			t.Fatalf("%s: %T", name, o)
		}
	}
	return indexServices(services, indexPods(nil), config), routes
}

func renderRoutes(t *testing.T, index *routeIndex) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(index.byService)) {
		fmt.Fprintf(&out, "# Service %s\n", key)
		for _, r := range index.byService[key] {
			text, err := protojson.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if text, err = yaml.JSONToYAML(text); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "---\n%s", text)
		}
	}
	for _, o := range index.outcomes {
		fmt.Fprintf(&out, "# %s %s/%s\n", o.Kind, o.Namespace, o.Name)
		for _, p := range o.Parents {
			fmt.Fprintf(&out, "at %s:\n", p.Ref.Name)
			for _, c := range p.Conditions {
				fmt.Fprintf(&out, "  %s=%s %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
			}
		}
	}
	return out.Bytes()
}

// What labels bind, and why nobody gets through where that is so.
func TestBound(t *testing.T) {
	result, err := Translate(readInput(t, "waypoints"))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, b := range result.Bound {
		got[b.Kind+" "+b.Namespace+"/"+b.Name] = strings.TrimSpace(b.Waypoint.String() + " " + b.Problem)
	}
	want := map[string]string{
		"Service shop/cart":          "shop/waypoint",
		"Service shop/soft":          "shop/waypoint",
		"Service web/front":          "shop/waypoint",
		"Service lone/orphan":        "lone/nobody there is no Gateway lone/nobody of class ambit-waypoint: connections are refused",
		"Service stranger/uninvited": "shop/every Gateway shop/every does not allow namespace stranger in its listener's allowedRoutes: connections are refused",
		"Pod shop/db-0":              "shop/every",
		"Service shop/plain":         "shop/waypoint uses port 80 of pods behind waypoint shop/waypoint: it is not bound itself, so its clients are refused; bind it too, or give it another port",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	through := map[types.UID][]string{
		"shop/cart-0": {"shop/waypoint"}, "shop/soft-0": {"shop/waypoint"}, "shop/db-0": {"shop/every"},
	}
	if diff := cmp.Diff(through, result.Through); diff != "" {
		t.Errorf("through (-want +got):\n%s", diff)
	}
}

// Who addresses a pod that is not captured gets past the waypoint, and that is told.
func TestBoundAndNotCaptured(t *testing.T) {
	in := readInput(t, "waypoints")
	delete(in.Captured.(captured), "shop/cart-0")
	result, err := Translate(in)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	for _, b := range result.Bound {
		if b.Problem == "" && !b.Direct {
			got[b.Kind+" "+b.Namespace+"/"+b.Name] = b.Uncaptured
		}
	}
	want := map[string]int{"Service shop/cart": 1, "Service web/front": 0, "Pod shop/db-0": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whoever is not the waypoint is kept away from what is behind it, and from nothing
// else; and from nothing at all before the binding is enforced, or where the owner
// does without.
func TestOnlyTheWaypointGetsToWhatIsBehindIt(t *testing.T) {
	in := readInput(t, "waypoints")
	guards := func(bindings Bindings) map[string][]string {
		in.Bindings = bindings
		result, err := Translate(in)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string][]string)
		for name, r := range result.Resources[resource.Address] {
			if w := r.Message.(*workload.Address).GetWorkload(); w != nil {
				for _, policy := range w.AuthorizationPolicies {
					if !strings.Contains(policy, waypointOnly) {
						continue
					}
					pod := strings.TrimPrefix(name, "Kubernetes//Pod/")
					got[pod] = append(got[pod], policy)
					if result.Resources[resource.Authorization][policy] == nil {
						t.Errorf("%s names %s, which is not sent", name, policy)
					}
				}
			}
		}
		return got
	}
	want := map[string][]string{
		"shop/db-0":   {"shop/waypoint_only_by_shop.every"},
		"shop/cart-0": {"shop/waypoint_only_80_by_shop.waypoint"},
	}
	if diff := cmp.Diff(want, guards(nil)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, stage := range []Stage{Announced, Led} {
		if got := guards(staged{Stage: stage}); len(got) > 0 {
			t.Errorf("at stage %d: %v", stage, got)
		}
	}
	// From one to another, both are let in, and nobody else.
	want = map[string][]string{
		"shop/db-0":   {"shop/waypoint_only_by_shop.another_by_shop.every"},
		"shop/cart-0": {"shop/waypoint_only_80_by_shop.another_by_shop.waypoint"},
	}
	for _, stage := range []Stage{Announced, Led} {
		if diff := cmp.Diff(want, guards(staged{Stage: stage, From: another})); diff != "" {
			t.Errorf("at stage %d (-want +got):\n%s", stage, diff)
		}
	}
}

var another = types.NamespacedName{Namespace: "shop", Name: "another"}

// While the mesh is removed no label binds anything: what is bound goes step by step.
func TestNothingIsBoundWhileTheMeshIsRemoved(t *testing.T) {
	for value, bound := range map[string]bool{"waypoints": false, "true": false, "false": true, "": true} {
		in := readInput(t, "waypoints")
		in.Config.SystemNamespace = "ambit-system"
		in.Namespaces = append(in.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ambit-system", Labels: map[string]string{binding.RemovingLabel: value}}})
		in.Bindings = staged{Stage: Led, leaving: map[Target]types.NamespacedName{{"Service", "shop", "cart"}: {Namespace: "shop", Name: "waypoint"}}}
		result, err := Translate(in)
		if err != nil {
			t.Fatal(err)
		}
		var stay, leave int
		for _, b := range result.Bound {
			switch {
			case b.Leaving:
				leave++
			case b.Stage > 0:
				stay++
			}
		}
		if bound != (stay > 1) || bound == (leave == 1) {
			t.Errorf("%q: %d are bound, %d leave", value, stay, leave)
		}
	}
}

// staged has whatever labels bind stand so, before their waypoint; and what they do not bind
// any more leave it.
type staged struct {
	Stage   Stage
	From    types.NamespacedName
	leaving map[Target]types.NamespacedName
}

func (s staged) Standing(t Target, waypoint types.NamespacedName) Standing {
	is := Standing{Waypoint: waypoint, Stage: s.Stage, From: s.From}
	if waypoint.Name == "" {
		if is.Waypoint, is.Leaving = s.leaving[t]; !is.Leaving {
			return Standing{}
		}
	}
	return is
}

// What nodes and waypoints get to know at each stage of a binding, whether a label wants
// it or it is on its way out.
func TestStagesOfABinding(t *testing.T) {
	left := map[Target]types.NamespacedName{{"Service", "shop", "cart"}: {Namespace: "shop", Name: "waypoint"}}
	for name, c := range map[string]struct {
		bindings Bindings
		unlabel  bool
		want     string
	}{
		"announced":     {staged{Stage: Announced}, false, "binding, announced waypoint"},
		"led":           {staged{Stage: Led}, false, "binding, through waypoint, announced waypoint"},
		"enforced":      {staged{Stage: Enforced}, false, "binding, through waypoint"},
		"gone":          {staged{Stage: Enforced}, true, ""},
		"leaving":       {staged{Stage: Led, leaving: left}, true, "binding, through waypoint, announced waypoint"},
		"left":          {staged{Stage: Announced, leaving: left}, true, "binding, announced waypoint"},
		"taking over":   {staged{Stage: Announced, From: another}, false, "binding, binding of another, through another, announced waypoint"},
		"another's yet": {staged{Stage: Led, From: another}, false, "binding, binding of another, through waypoint, announced another"},
	} {
		t.Run(name, func(t *testing.T) {
			in := readInput(t, "waypoints")
			in.Bindings = c.bindings
			in.Gateways = append(in.Gateways, &gateway.Gateway{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "another"}, Spec: gateway.GatewaySpec{GatewayClassName: binding.Class},
			})
			if c.unlabel {
				for _, s := range in.Services {
					if s.Namespace == "shop" && s.Name == "cart" {
						s.Labels = map[string]string{binding.Label: binding.None}
					}
				}
			}
			result, err := Translate(in)
			if err != nil {
				t.Fatal(err)
			}
			const key = "shop/cart.shop.svc.cluster.local"
			var got []string
			if result.Resources[resource.Binding][key] != nil {
				got = append(got, "binding")
			}
			if r := result.Resources[resource.Binding][key+"@shop/another"]; r != nil && slices.Equal(r.Aliases, []string{WaypointAlias(another)}) {
				got = append(got, "binding of another")
			}
			named := func(hostname string) string { name, _, _ := strings.Cut(hostname, "."); return name }
			s := result.Resources[resource.Address][key].Message.(*workload.Address).GetService()
			if s.Waypoint != nil {
				got = append(got, "through "+named(s.Waypoint.GetHostname().GetHostname()))
			}
			for _, e := range s.Extensions {
				if e.Name == announcedExtension {
					announced := &mesh.WaypointAnnounced{}
					if err := e.Config.UnmarshalTo(announced); err != nil {
						t.Fatal(err)
					}
					got = append(got, "announced "+named(strings.TrimPrefix(announced.Service, "shop/")))
				}
			}
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			for _, b := range result.Bound {
				if b.Kind == "Service" && b.Name == "cart" && (b.Leaving != c.unlabel || b.Target != key) {
					t.Errorf("told: %+v", b)
				}
			}
		})
	}
}
