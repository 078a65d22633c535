package workload_test

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

func extension(t testing.TB, name string, message proto.Message) *api.Extension {
	t.Helper()
	config, err := anypb.New(message)
	if err != nil {
		t.Fatal(err)
	}
	return &api.Extension{Name: name, Config: config}
}

func mutualTLS(t testing.TB, mode mesh.MutualTLS_Mode) *api.Extension {
	return extension(t, workload.MutualTLSExtension, &mesh.MutualTLS{Mode: mode})
}

func egressPolicies(t testing.TB, names ...string) *api.Extension {
	return extension(t, workload.EgressPoliciesExtension, &mesh.EgressPolicies{Names: names})
}

func TestMutualTLSOfWorkloadsAndNamespaces(t *testing.T) {
	if w, _ := workloadtest.Store(t, pod(nil)).Snapshot().WorkloadByUID(podUID); w.MutualTLS != workload.Permissive {
		t.Errorf("nothing said, and the mode is %s", w.MutualTLS)
	}
	for mode, want := range map[mesh.MutualTLS_Mode]workload.MutualTLSMode{
		mesh.MutualTLS_PERMISSIVE: workload.Permissive,
		mesh.MutualTLS_STRICT:     workload.StrictMutualTLS,
		mesh.MutualTLS_DISABLE:    workload.DisabledMutualTLS,
	} {
		store := workloadtest.Store(t,
			pod(func(w *api.Workload) { w.Extensions = []*api.Extension{{Name: "somebody.else/s"}, mutualTLS(t, mode)} }),
			&mesh.Namespace{Name: "shop", MutualTls: mode, EgressDenied: true})
		w, _ := store.Snapshot().WorkloadByUID(podUID)
		if w.MutualTLS != want || want.String() != mode.String() {
			t.Errorf("the mode of a workload is %s, want %s", w.MutualTLS, mode)
		}
		if got := store.Snapshot().Namespace("shop"); got != (workload.Namespace{MutualTLS: want, EgressDenied: true}) {
			t.Errorf("%s: the namespace is %+v", mode, got)
		}
		remove(store, workload.NamespaceType, "shop")
		if got := store.Snapshot().Namespace("shop"); got != (workload.Namespace{}) {
			t.Errorf("%s: the removed namespace is %+v", mode, got)
		}
	}
}

func TestEgressPolicyIsReadWhole(t *testing.T) {
	store := workloadtest.Store(t, &mesh.EgressPolicy{
		Namespace: "shop", Name: "out", Action: mesh.EgressPolicy_DENY, DryRun: true,
		Exceptions: []*mesh.EgressException{
			{Destination: &mesh.EgressException_Cidr{Cidr: "203.0.113.9/24"}},
			{Destination: &mesh.EgressException_DnsName{DnsName: "api.example.com"}, Ports: []*mesh.EgressPort{
				{Protocol: mesh.EgressPort_TCP, Port: 443}, {Protocol: mesh.EgressPort_UDP, Port: 443, EndPort: 444}}},
			{Destination: &mesh.EgressException_DnsName{DnsName: "*.example.com"}},
			{Ports: []*mesh.EgressPort{{Protocol: mesh.EgressPort_ANY, Port: 53}}},
		},
	})
	want := &workload.EgressPolicy{Key: "shop/out", Deny: true, DryRun: true, Exceptions: []workload.EgressException{
		{Prefix: netip.MustParsePrefix("203.0.113.0/24")},
		{Name: "api.example.com", Ports: []workload.EgressPort{{TCP: true, First: 443, Last: 443}, {UDP: true, First: 443, Last: 444}}},
		{Name: "example.com", Wildcard: true},
		{Ports: []workload.EgressPort{{TCP: true, UDP: true, First: 53, Last: 53}}},
	}}
	if got, ok := store.Snapshot().EgressPolicy("shop/out"); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestEgressNames(t *testing.T) {
	exact := workload.EgressException{Name: "example.com"}
	wildcard := workload.EgressException{Name: "example.com", Wildcard: true}
	for name, want := range map[string]struct{ exact, wildcard bool }{
		"example.com":         {exact: true},
		"www.example.com":     {wildcard: true},
		"a.b.example.com":     {wildcard: true},
		".example.com":        {},
		"badexample.com":      {},
		"example.com.evil":    {},
		"exampleXcom":         {},
		"":                    {},
		"www.example.com.org": {},
	} {
		if got := exact.MatchesName(name); got != want.exact {
			t.Errorf("example.com matches %q: %t", name, got)
		}
		if got := wildcard.MatchesName(name); got != want.wildcard {
			t.Errorf("*.example.com matches %q: %t", name, got)
		}
	}
	if (&workload.EgressException{}).MatchesName("") {
		t.Error("an exception without a name matches none")
	}
}

// What a workload's way out depends on is known, or known to be missing: a
// policy that is late, or that cannot be read, is never taken for none.
func TestMissingEgressPolicies(t *testing.T) {
	deny := &mesh.EgressPolicy{Namespace: "shop", Name: "a", Action: mesh.EgressPolicy_DENY}
	store := workloadtest.Store(t, pod(func(w *api.Workload) {
		w.Extensions = []*api.Extension{egressPolicies(t, "shop/b", "shop/a", "shop/b")}
	}))
	check := func(when string, wantPolicies, wantMissing []string) {
		t.Helper()
		s := store.Snapshot()
		w, _ := s.WorkloadByUID(podUID)
		policies, missing := s.EgressPolicies(w)
		var keys []string
		for _, p := range policies {
			keys = append(keys, p.Key)
		}
		if !slices.Equal(keys, wantPolicies) || !slices.Equal(missing, wantMissing) {
			t.Errorf("%s: policies %v, missing %v", when, keys, missing)
		}
	}
	check("before they come", nil, []string{"shop/a", "shop/b"})
	workloadtest.Apply(t, store, deny)
	check("one came", []string{"shop/a"}, []string{"shop/b"})
	workloadtest.Apply(t, store, &mesh.EgressPolicy{Namespace: "shop", Name: "b", Action: mesh.EgressPolicy_ALLOW})
	check("both came", []string{"shop/a", "shop/b"}, nil)

	bad := workloadtest.Resource(t, &mesh.EgressPolicy{Namespace: "shop", Name: "b", Action: 77})
	store.Apply(workload.Delta{Type: workload.EgressPolicyType, Upserts: []workload.Resource{bad}})
	check("one became unreadable", []string{"shop/a"}, []string{"shop/b"})
	remove(store, workload.EgressPolicyType, "shop/a")
	check("and one was removed", nil, []string{"shop/a", "shop/b"})
}

func TestMalformedPoliciesAreRejected(t *testing.T) {
	withExtensions := func(e ...*api.Extension) proto.Message { return pod(func(w *api.Workload) { w.Extensions = e }) }
	deny := func(change func(*mesh.EgressPolicy)) proto.Message {
		p := &mesh.EgressPolicy{Namespace: "shop", Name: "out", Action: mesh.EgressPolicy_DENY}
		change(p)
		return p
	}
	except := func(e ...*mesh.EgressException) proto.Message {
		return deny(func(p *mesh.EgressPolicy) { p.Exceptions = e })
	}
	cidr := func(text string) *mesh.EgressException {
		return &mesh.EgressException{Destination: &mesh.EgressException_Cidr{Cidr: text}}
	}
	name := func(text string) *mesh.EgressException {
		return &mesh.EgressException{Destination: &mesh.EgressException_DnsName{DnsName: text}}
	}
	port := func(p *mesh.EgressPort) *mesh.EgressException {
		return &mesh.EgressException{Ports: []*mesh.EgressPort{p}}
	}
	for _, test := range []struct {
		message proto.Message
		field   string
	}{
		{withExtensions(mutualTLS(t, 0)), "extensions[0].config.mode: MODE_UNSPECIFIED"},
		{withExtensions(mutualTLS(t, 77)), "extensions[0].config.mode: 77"},
		{withExtensions(&api.Extension{Name: workload.MutualTLSExtension}), "extensions[0].config"},
		{withExtensions(mutualTLS(t, 1), mutualTLS(t, 2)), "extensions[1].name"},
		{withExtensions(extension(t, workload.MutualTLSExtension, &mesh.Config{})), "extensions[0].config"},
		{withExtensions(egressPolicies(t, "shop/a", "b")), "extensions[0].config.names[1]"},
		{withExtensions(egressPolicies(t, "shop/")), "extensions[0].config.names[0]"},
		{withExtensions(egressPolicies(t, "shop/a/b")), "extensions[0].config.names[0]"},
		{withExtensions(egressPolicies(t, slices.Repeat([]string{"shop/a"}, 1025)...)), "extensions[0].config.names: 1025"},

		{&mesh.Namespace{Name: "shop"}, "mutual_tls: MODE_UNSPECIFIED"},
		{&mesh.Namespace{MutualTls: mesh.MutualTLS_STRICT}, "name"},

		{deny(func(p *mesh.EgressPolicy) { p.Action = 0 }), "action: ACTION_UNSPECIFIED"},
		{deny(func(p *mesh.EgressPolicy) { p.Action = 77 }), "action: 77"},
		{deny(func(p *mesh.EgressPolicy) { p.Name = "" }), "namespace, name"},
		{deny(func(p *mesh.EgressPolicy) {
			p.Action, p.Exceptions = mesh.EgressPolicy_ALLOW, []*mesh.EgressException{cidr("10.0.0.0/8")}
		}), "exceptions: of a policy that allows"},
		{except(slices.Repeat([]*mesh.EgressException{cidr("10.0.0.0/8")}, 1025)...), "exceptions: 1025"},
		{except(cidr("10.0.0.0/8"), &mesh.EgressException{}), "exceptions[1].ports: empty"},
		{except(cidr("10.0.0.0")), "exceptions[0].cidr"},
		{except(cidr("::ffff:10.0.0.0/104")), "exceptions[0].cidr"},
		{except(cidr("")), "exceptions[0].cidr"},
		{except(name("")), "exceptions[0].dns_name"},
		{except(name("*.")), "exceptions[0].dns_name"},
		{except(name("*")), "exceptions[0].dns_name"},
		{except(name("a.*.example.com")), "exceptions[0].dns_name"},
		{except(name("Example.com")), "exceptions[0].dns_name"},
		{except(name("example.com.")), "exceptions[0].dns_name"},
		{except(name(strings.Repeat("a", 64) + ".com")), "exceptions[0].dns_name"},
		{except(name(strings.Repeat("a.", 127))), "exceptions[0].dns_name"},
		{except(port(&mesh.EgressPort{Port: 443})), "exceptions[0].ports[0].protocol: PROTOCOL_UNSPECIFIED"},
		{except(port(&mesh.EgressPort{Protocol: 77, Port: 443})), "exceptions[0].ports[0].protocol: 77"},
		{except(port(&mesh.EgressPort{Protocol: mesh.EgressPort_TCP})), "exceptions[0].ports[0].port: 0"},
		{except(port(&mesh.EgressPort{Protocol: mesh.EgressPort_TCP, Port: 65536})), "exceptions[0].ports[0].port: 65536"},
		{except(port(&mesh.EgressPort{Protocol: mesh.EgressPort_TCP, Port: 443, EndPort: 442})), "exceptions[0].ports[0].end_port: 442"},
		{except(port(&mesh.EgressPort{Protocol: mesh.EgressPort_TCP, Port: 443, EndPort: 65536})), "exceptions[0].ports[0].end_port: 65536"},
		{except(&mesh.EgressException{Ports: slices.Repeat([]*mesh.EgressPort{{Protocol: mesh.EgressPort_TCP, Port: 443}}, 65)}), "exceptions[0].ports: 65"},
	} {
		r := workloadtest.Resource(t, test.message)
		store := workload.NewStore()
		rejected := store.Apply(workload.Delta{Type: r.Body.GetTypeUrl(), Upserts: []workload.Resource{r}})
		if len(rejected) != 1 {
			t.Errorf("%s: accepted", test.field)
			continue
		}
		if text := rejected[0].Error(); !strings.Contains(text, test.field) {
			t.Errorf("error is %q, want it to name %q", text, test.field)
		}
		if got := store.Snapshot().Count(r.Body.GetTypeUrl()); got != 0 {
			t.Errorf("%s: %d resources in force", test.field, got)
		}
	}
}

// Whatever the bytes, what is in force is well formed, or refused.
func FuzzApplyEgressPolicy(f *testing.F) {
	for _, m := range []*mesh.EgressPolicy{
		{Namespace: "shop", Name: "out", Action: mesh.EgressPolicy_ALLOW},
		{Namespace: "shop", Name: "out", Action: mesh.EgressPolicy_DENY, Exceptions: []*mesh.EgressException{
			{Destination: &mesh.EgressException_Cidr{Cidr: "203.0.113.0/24"}, Ports: []*mesh.EgressPort{{Protocol: mesh.EgressPort_ANY, Port: 1, EndPort: 9}}},
			{Destination: &mesh.EgressException_DnsName{DnsName: "*.example.com"}},
		}},
	} {
		f.Add(workloadtest.Resource(f, m).Body.GetValue())
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		const key = "shop/out"
		store := workload.NewStore()
		store.Apply(workload.Delta{Type: workload.EgressPolicyType, Upserts: []workload.Resource{
			{Name: key, Version: "1", Body: &anypb.Any{TypeUrl: workload.EgressPolicyType, Value: body}},
		}})
		policies, missing := store.Snapshot().EgressPolicies(&workload.Workload{EgressPolicies: []string{key}})
		if len(policies)+len(missing) != 1 {
			t.Fatalf("%d policies, %d missing", len(policies), len(missing))
		}
		for _, p := range policies {
			for _, e := range p.Exceptions {
				if !e.Prefix.IsValid() && e.Name == "" && len(e.Ports) == 0 {
					t.Fatal("an exception for everything")
				}
				for _, port := range e.Ports {
					if !port.TCP && !port.UDP || port.First == 0 || port.Last < port.First {
						t.Fatalf("port %+v", port)
					}
				}
			}
		}
	})
}
