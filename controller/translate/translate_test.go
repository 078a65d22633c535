package translate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/internal/workload"
)

var update = flag.Bool("update", false, "write the golden files anew")

// capturedAnnotation marks the pods that their nodes reported captured.
const capturedAnnotation = "test.ambit.mesh/captured"

// enrolledAnnotation marks the pods that are to be captured.
const enrolledAnnotation = "test.ambit.mesh/enrolled"

// Every file in testdata is a promise: Kubernetes objects in NAME.yaml, what
// data planes are told in NAME.golden.
func TestTranslate(t *testing.T) {
	for _, name := range cases(t) {
		t.Run(name, func(t *testing.T) {
			result, err := Translate(readInput(t, name))
			if err != nil {
				t.Errorf("problems: %v", err)
			}
			got := append(render(t, result.Resources), renderPolicies(result.Policies)...)
			path := filepath.Join("testdata", name+".golden")
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

// The order in which informers hand out objects must not show.
func TestTranslateDoesNotDependOnOrder(t *testing.T) {
	for _, name := range cases(t) {
		t.Run(name, func(t *testing.T) {
			in := readInput(t, name)
			want := versions(t, in)
			for seed := range uint64(50) {
				shuffle(rand.New(rand.NewPCG(seed, 0)), &in)
				if diff := cmp.Diff(want, versions(t, in)); diff != "" {
					t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
				}
			}
		})
	}
}

// The same content must have the same version in every replica, so the input
// must not be changed by translating it either.
func TestTranslateLeavesItsInputAlone(t *testing.T) {
	for _, name := range cases(t) {
		in, untouched := readInput(t, name), readInput(t, name)
		if _, err := Translate(in); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(untouched, in); diff != "" {
			t.Errorf("%s (-before +after):\n%s", name, diff)
		}
	}
}

// An object that cannot be expressed takes no other with it.
func TestTranslateReportsWhatItLeavesOut(t *testing.T) {
	in := readInput(t, "clusterip")
	whole := versions(t, in)
	broken := in.Pods[0].DeepCopy()
	broken.Name, broken.UID = "broken", "broken"
	broken.Labels = map[string]string{"app": "\xff"}
	broken.Status.PodIPs = []corev1.PodIP{{IP: "10.244.9.9"}}
	in.Pods = append(in.Pods, broken)

	result, err := Translate(in)
	if err == nil || !strings.Contains(err.Error(), "Kubernetes//Pod/shop/broken") {
		t.Errorf("error %v does not name the pod", err)
	}
	if diff := cmp.Diff(whole, versionsOf(result.Resources)); diff != "" {
		t.Errorf("the others changed:\n%s", diff)
	}
}

// A range that is none is reported with who said it, and the others are there.
func TestTranslateReportsRangesThatAreNone(t *testing.T) {
	in := readInput(t, "mesh")
	whole := versions(t, in)
	in.Config.PodRanges, in.Config.ServiceRanges = append(in.Config.PodRanges, "10.1"), append(in.Config.ServiceRanges, "10.2")
	node, cidr := in.Nodes[0].DeepCopy(), in.ServiceCIDRs[0].DeepCopy()
	node.Name, node.Spec.PodCIDRs = "odd", []string{"10.3"}
	cidr.Name, cidr.Spec.CIDRs = "odd", []string{"10.4"}
	in.Nodes, in.ServiceCIDRs = append(in.Nodes, node), append(in.ServiceCIDRs, cidr)

	result, err := Translate(in)
	for _, want := range []string{
		`pod range of the configuration: netip.ParsePrefix("10.1")`, `service range of the configuration: netip.ParsePrefix("10.2")`,
		`pod range of node odd: netip.ParsePrefix("10.3")`, `service range of ServiceCIDR odd: netip.ParsePrefix("10.4")`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %s", err, want)
		}
	}
	if diff := cmp.Diff(whole, versionsOf(result.Resources)); diff != "" {
		t.Errorf("the others changed:\n%s", diff)
	}
}

func BenchmarkTranslate(b *testing.B) {
	const pods, perService = 10_000, 20
	in := Input{Config: config, Captured: captured{}}
	name, port := "http", int32(8080)
	for i := range pods {
		ip := fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)
		p := &corev1.Pod{}
		p.Namespace, p.Name, p.UID = "shop", fmt.Sprintf("web-%d", i), types.UID(fmt.Sprint(i))
		p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
		in.Pods = append(in.Pods, p)
		in.Captured.(captured)[p.UID] = true
		service := fmt.Sprintf("web-%d", i/perService)
		if i%perService == 0 {
			s := &corev1.Service{}
			s.Namespace, s.Name = "shop", service
			s.Spec.ClusterIPs = []string{fmt.Sprintf("10.200.%d.%d", i>>8&255, i&255)}
			s.Spec.Ports = []corev1.ServicePort{{Name: name, Port: 80}}
			slice := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}}}
			slice.Namespace, slice.Name = "shop", service
			slice.Labels = map[string]string{discoveryv1.LabelServiceName: service}
			in.Services, in.Slices = append(in.Services, s), append(in.Slices, slice)
		}
		slice := in.Slices[len(in.Slices)-1]
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: p.Name},
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Translate(in); err != nil {
			b.Fatal(err)
		}
	}
}

var config = Config{TrustDomain: "cluster.local", ClusterID: "Kubernetes", ClusterDomain: "cluster.local", SystemNamespace: "ambit-system"}

type captured map[types.UID]bool

func (c captured) Has(uid types.UID) bool { return c[uid] }

// Since has them enrolled for ever.
func (c captured) Since(uid types.UID) (time.Time, bool) { return time.Time{}, c[uid] }

func cases(t *testing.T) []string {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".yaml")
	}
	return files
}

// codecs know Kubernetes' objects and ours.
var codecs = func() serializer.CodecFactory {
	all := runtime.NewScheme()
	if err := scheme.AddToScheme(all); err != nil {
		panic(err)
	}
	if err := v1alpha1.AddToScheme(all); err != nil {
		panic(err)
	}
	if err := gateway.Install(all); err != nil {
		panic(err)
	}
	return serializer.NewCodecFactory(all)
}()

// readInput reads the Kubernetes objects of a case.
func readInput(t *testing.T, name string) Input {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	enrolled := captured{}
	in := Input{Captured: captured{}, Enrolled: enrolled, Config: config}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		object, _, err := codecs.UniversalDeserializer().Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, document)
		}
		switch o := object.(type) {
		case *corev1.Pod:
			if o.UID == "" {
				o.UID = types.UID(o.Namespace + "/" + o.Name)
			}
			in.Pods = append(in.Pods, o)
			in.Captured.(captured)[o.UID] = o.Annotations[capturedAnnotation] == "true"
			enrolled[o.UID] = o.Annotations[enrolledAnnotation] == "true"
		case *gateway.Gateway:
			in.Gateways = append(in.Gateways, o)
		case *gateway.HTTPRoute:
			in.Routes.HTTP = append(in.Routes.HTTP, o)
		case *corev1.Service:
			in.Services = append(in.Services, o)
		case *discoveryv1.EndpointSlice:
			in.Slices = append(in.Slices, o)
		case *corev1.Node:
			in.Nodes = append(in.Nodes, o)
		case *corev1.Namespace:
			in.Namespaces = append(in.Namespaces, o)
		case *networkingv1.ServiceCIDR:
			in.ServiceCIDRs = append(in.ServiceCIDRs, o)
		case *v1alpha1.PeerAuthentication:
			in.PeerAuthentications = append(in.PeerAuthentications, o)
		case *v1alpha1.AuthorizationPolicy:
			in.AuthorizationPolicies = append(in.AuthorizationPolicies, o)
		case *v1alpha1.EgressPolicy:
			in.EgressPolicies = append(in.EgressPolicies, o)
		case *v1alpha1.RequestAuthentication:
			in.RequestAuthentications = append(in.RequestAuthentications, o)
		case *corev1.ConfigMap: // settings that are not Kubernetes objects
			in.Roots = append(in.Roots, o.Data["root"])
			in.Config.PodRanges, in.Config.ServiceRanges = strings.Fields(o.Data["podRanges"]), strings.Fields(o.Data["serviceRanges"])
			in.Config.TrustDomain = o.Data["trustDomain"]
		default:
			t.Fatalf("%s: what is a %T?", name, o)
		}
	}
	return in
}

// What is to be let go refuses no plaintext, by whatever port and policy, whether it is captured still or not; what stays does.
func TestWhatLeavesTakesPlaintext(t *testing.T) {
	for _, reached := range []captured{nil, {}} { // as the case says, and none
		in := readInput(t, "mutualtls")
		if reached != nil {
			in.Captured = reached
		}
		leaving := captured{}
		for i, p := range in.Pods {
			leaving[p.UID] = i%2 == 0
		}
		in.Leaving, in.Enrolled = leaving, nil
		refuses := map[types.UID]bool{}
		for _, w := range workloadsOf(t, in) {
			for _, name := range w.AuthorizationPolicies {
				refuses[types.UID(w.Namespace+"/"+w.Name)] = strings.Contains(name, strictName)
			}
		}
		for uid, leaves := range leaving {
			if leaves && refuses[uid] {
				t.Errorf("%s is to be let go, and refuses plaintext", uid)
			}
		}
		stays := slices.Collect(maps.Keys(refuses))
		if len(stays) == 0 {
			t.Error("nothing refuses plaintext: the test shows nothing")
		}
		in.Leaving = nil
		before := 0
		for _, w := range workloadsOf(t, in) {
			before += len(w.AuthorizationPolicies)
		}
		if before <= len(refuses) {
			t.Errorf("%d authorizations refuse plaintext where nothing leaves, %d pods where half of them do", before, len(refuses))
		}
	}
}

func workloadsOf(t *testing.T, in Input) (all []*api.Workload) {
	t.Helper()
	result, err := Translate(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range result.Resources[resource.Address] {
		if w := r.Message.(*api.Address).GetWorkload(); w != nil {
			all = append(all, w)
		}
	}
	return all
}

// render resources as YAML, addresses spelled out, without versions: those
// change with the library, and have a test of their own.
func render(t *testing.T, resources resource.Resources) []byte {
	t.Helper()
	all := make(map[string]any)
	for typeURL, byName := range resources {
		for name, r := range byName {
			switch typeURL { // they are named after what they are about
			case resource.Binding:
				name = "Binding " + name
			case resource.RequestPolicy:
				name = "RequestPolicy " + name
			case resource.RequestAuthentication:
				name = "RequestAuthentication " + name
			}
			text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r.Message)
			if err != nil {
				t.Fatal(err)
			}
			var content map[string]any
			if err := json.Unmarshal(text, &content); err != nil {
				t.Fatal(err)
			}
			spellAddresses(content)
			if len(r.Aliases) > 0 {
				content["(aliases)"] = r.Aliases
			}
			all[name] = content
		}
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// renderPolicies shows what became of each, as comments.
func renderPolicies(policies []*Policy) []byte {
	var b bytes.Buffer
	for _, p := range policies {
		fmt.Fprintf(&b, "# %s %s/%s: %d workloads", p.Kind, p.Namespace, p.Name, p.Workloads)
		if p.DryRun {
			b.WriteString(", dry run")
		}
		for _, node := range slices.Sorted(maps.Keys(p.Nodes)) {
			fmt.Fprintf(&b, "; on %s %v", node, p.Nodes[node])
		}
		for _, r := range p.Resources {
			fmt.Fprintf(&b, "; needs %s", r.Name)
		}
		for _, waypoint := range p.Waypoints {
			fmt.Fprintf(&b, "; at %s", waypoint)
		}
		for _, r := range p.AtWaypoints {
			fmt.Fprintf(&b, " needs %s", r.Name)
		}
		b.WriteString("\n")
		for _, problem := range p.Problems {
			fmt.Fprintf(&b, "#   %s: %s: %s\n", problem.Reason, problem.Field, problem.Message)
		}
	}
	return b.Bytes()
}

// spellAddresses replaces raw addresses by readable ones.
func spellAddresses(v any) {
	spell := func(v any) any {
		if raw, err := base64.StdEncoding.DecodeString(fmt.Sprint(v)); err == nil {
			if addr, ok := netip.AddrFromSlice(raw); ok {
				return addr.String()
			}
		}
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		for key, field := range v {
			if list, ok := field.([]any); ok && key == "addresses" {
				for i := range list {
					list[i] = spell(list[i])
				}
			}
			if key == "address" {
				v[key] = spell(field)
			}
			spellAddresses(field)
		}
	case []any:
		for _, element := range v {
			spellAddresses(element)
		}
	}
}

func versions(t *testing.T, in Input) map[string]string {
	t.Helper()
	result, err := Translate(in)
	if err != nil {
		t.Fatal(err)
	}
	return versionsOf(result.Resources)
}

func versionsOf(resources resource.Resources) map[string]string {
	all := make(map[string]string)
	for typeURL, byName := range resources {
		for name, r := range byName {
			all[typeURL+" "+name] = r.Version
		}
	}
	return all
}

func shuffle(random *rand.Rand, in *Input) {
	random.Shuffle(len(in.Pods), func(i, j int) { in.Pods[i], in.Pods[j] = in.Pods[j], in.Pods[i] })
	random.Shuffle(len(in.Services), func(i, j int) { in.Services[i], in.Services[j] = in.Services[j], in.Services[i] })
	random.Shuffle(len(in.Slices), func(i, j int) { in.Slices[i], in.Slices[j] = in.Slices[j], in.Slices[i] })
	random.Shuffle(len(in.Nodes), func(i, j int) { in.Nodes[i], in.Nodes[j] = in.Nodes[j], in.Nodes[i] })
	random.Shuffle(len(in.PeerAuthentications), func(i, j int) {
		in.PeerAuthentications[i], in.PeerAuthentications[j] = in.PeerAuthentications[j], in.PeerAuthentications[i]
	})
	random.Shuffle(len(in.AuthorizationPolicies), func(i, j int) {
		in.AuthorizationPolicies[i], in.AuthorizationPolicies[j] = in.AuthorizationPolicies[j], in.AuthorizationPolicies[i]
	})
	random.Shuffle(len(in.EgressPolicies), func(i, j int) {
		in.EgressPolicies[i], in.EgressPolicies[j] = in.EgressPolicies[j], in.EgressPolicies[i]
	})
	random.Shuffle(len(in.RequestAuthentications), func(i, j int) {
		in.RequestAuthentications[i], in.RequestAuthentications[j] = in.RequestAuthentications[j], in.RequestAuthentications[i]
	})
	for _, s := range in.Slices {
		random.Shuffle(len(s.Endpoints), func(i, j int) { s.Endpoints[i], s.Endpoints[j] = s.Endpoints[j], s.Endpoints[i] })
		random.Shuffle(len(s.Ports), func(i, j int) { s.Ports[i], s.Ports[j] = s.Ports[j], s.Ports[i] })
	}
}

// Whatever is sent can be read by a data plane: what one refuses would hold its
// connections up, or be missing.
func TestDataPlanesReadWhatIsSent(t *testing.T) {
	for _, name := range cases(t) {
		result, err := Translate(readInput(t, name))
		if err != nil {
			t.Fatal(err)
		}
		store := workload.NewStore()
		for _, typeURL := range workload.WaypointTypes {
			delta := workload.Delta{Type: typeURL}
			for _, r := range result.Resources[typeURL] {
				if typeURL == workload.TrustBundleType {
					continue // of tests, without certificates in it
				}
				delta.Upserts = append(delta.Upserts, workload.Resource{Name: r.Name, Version: r.Version, Aliases: r.Aliases, Body: r.Body})
			}
			for _, rejection := range store.Apply(delta) {
				t.Errorf("%s: %v", name, rejection)
			}
		}
		for typeURL := range result.Resources {
			if !slices.Contains(workload.WaypointTypes[:], typeURL) {
				t.Errorf("%s: nobody asks for %s", name, typeURL)
			}
		}
		snapshot := store.Snapshot()
		for uid, w := range snapshot.Workloads() {
			for _, policy := range w.Authorizations {
				if _, ok := snapshot.Authorization(policy); !ok {
					t.Errorf("%s: %s names %s, which is not sent", name, uid, policy)
				}
			}
			if _, missing := snapshot.EgressPolicies(w); len(missing) > 0 {
				t.Errorf("%s: %s names %v, which is not sent", name, uid, missing)
			}
		}
	}
}
