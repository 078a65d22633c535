package workload_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/security"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// policy that matches everything.
func policy(namespace, name string, scope security.Scope, action security.Action) *security.Authorization {
	return &security.Authorization{Namespace: namespace, Name: name, Scope: scope, Action: action, Rules: []*security.Rule{{}}}
}

func names(list []*authz.Policy) string {
	var out []string
	for _, p := range list {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

// applies is what the snapshot says about the pod of these tests.
func applies(t *testing.T, store *workload.Store) (*workload.Workload, workload.Policies) {
	t.Helper()
	w, ok := store.Snapshot().WorkloadByUID(podUID)
	if !ok {
		t.Fatal("the pod is not known")
	}
	return w, store.Snapshot().Policies(w)
}

func TestPoliciesApplyByScopeAndByName(t *testing.T) {
	store := workloadtest.Store(t,
		pod(func(w *api.Workload) { w.AuthorizationPolicies = []string{"shop/mine", "shop/late", "bank/theirs"} }),
		policy("ambit-system", "all", security.Scope_GLOBAL, security.Action_DENY),
		policy("shop", "b", security.Scope_NAMESPACE, security.Action_ALLOW),
		policy("shop", "a", security.Scope_NAMESPACE, security.Action_ALLOW),
		policy("bank", "a", security.Scope_NAMESPACE, security.Action_ALLOW),
		policy("shop", "mine", security.Scope_WORKLOAD_SELECTOR, security.Action_ALLOW),
		policy("shop", "others", security.Scope_WORKLOAD_SELECTOR, security.Action_DENY),
		policy("bank", "theirs", security.Scope_WORKLOAD_SELECTOR, security.Action_DENY),
	)
	_, p := applies(t, store)
	if names(p.Global) != "ambit-system/all" || names(p.Namespace) != "shop/a shop/b" || names(p.Attached) != "shop/mine bank/theirs" || !slices.Equal(p.Missing, []string{"shop/late"}) {
		t.Errorf("global %s, namespace %s, attached %s, missing %v", names(p.Global), names(p.Namespace), names(p.Attached), p.Missing)
	}
	workloadtest.Apply(t, store, policy("shop", "late", security.Scope_WORKLOAD_SELECTOR, security.Action_ALLOW))
	remove(store, workload.AuthorizationType, "ambit-system/all")
	remove(store, workload.AuthorizationType, "shop/a")
	_, p = applies(t, store)
	if len(p.Global) != 0 || names(p.Namespace) != "shop/b" || len(p.Missing) != 0 {
		t.Errorf("global %s, namespace %s, missing %v", names(p.Global), names(p.Namespace), p.Missing)
	}
	if got := store.Snapshot().Authorizations(); len(got) != 6 || got[0] != "bank/a" {
		t.Errorf("names are %v", got)
	}
	if found, ok := store.Snapshot().Authorization("shop/mine"); !ok || found.Action != authz.Allow {
		t.Error("not found by its name")
	}
}

// A policy that cannot be read denies in its scope, or everywhere if that is not
// known either, instead of what it said before; until it can be read, or is gone.
func TestRejectedPoliciesDeny(t *testing.T) {
	connection := authz.Connection{Client: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.244.1.7:8080")}
	bad := func(change func(*security.Authorization)) workload.Resource {
		a := policy("shop", "p", security.Scope_WORKLOAD_SELECTOR, security.Action_ALLOW)
		change(a)
		r := workloadtest.Resource(t, a)
		r.Name = "shop/p"
		return r
	}
	garbage := workload.Resource{Name: "shop/p", Version: "g", Body: &anypb.Any{TypeUrl: workload.AuthorizationType, Value: []byte{0xff}}}
	for name, c := range map[string]struct {
		resource workload.Resource
		attached bool
		field    string
	}{
		"action":        {bad(func(a *security.Authorization) { a.Action = 9 }), true, "action"},
		"scope":         {bad(func(a *security.Authorization) { a.Scope = 9 }), false, "scope"},
		"another name":  {bad(func(a *security.Authorization) { a.Name = "q" }), false, "name"},
		"garbage":       {garbage, false, "decode"},
		"nothing":       {workload.Resource{Name: "shop/p", Version: "n"}, false, "empty"},
		"another type":  {ofAnotherType(t, "shop/p"), false, "decode"},
		"value in DENY": {bad(func(a *security.Authorization) { deny(a, 99999) }), true, "destination_ports"},
	} {
		t.Run(name, func(t *testing.T) {
			store := workloadtest.Store(t,
				pod(func(w *api.Workload) {
					if c.attached {
						w.AuthorizationPolicies = []string{"shop/p"}
					}
				}),
				policy("shop", "p", security.Scope_WORKLOAD_SELECTOR, security.Action_ALLOW))
			w, p := applies(t, store)
			if !p.Decide(connection).Allowed {
				t.Fatal("denied before")
			}
			good, version := store.Snapshot().Version(), store.Snapshot().PolicyVersion(w)
			rejected := store.Apply(workload.Delta{Type: workload.AuthorizationType, Upserts: []workload.Resource{c.resource}})
			if len(rejected) != 1 || rejected[0].Name != "shop/p" || !strings.Contains(rejected[0].Error(), c.field) {
				t.Fatalf("rejected %v, want %s", rejected, c.field)
			}
			_, p = applies(t, store)
			if d := p.Decide(connection); d.Allowed || d.Policy.Name != "shop/p" || d.Policy.Err == nil {
				t.Errorf("decided %+v", d)
			}
			if len(p.Missing) != 0 {
				t.Errorf("missing %v", p.Missing)
			}
			if s := store.Snapshot(); s.Version() == good || s.PolicyVersion(w) == version {
				t.Error("the snapshot claims to be as before")
			}
			workloadtest.Apply(t, store, policy("shop", "p", security.Scope_WORKLOAD_SELECTOR, security.Action_ALLOW))
			if _, p = applies(t, store); !p.Decide(connection).Allowed || store.Snapshot().Version() != good || len(store.Snapshot().Rejected()) != 0 {
				t.Error("still denied when it could be read again")
			}
			store.Apply(workload.Delta{Type: workload.AuthorizationType, Upserts: []workload.Resource{c.resource}})
			remove(store, workload.AuthorizationType, "shop/p")
			if _, p = applies(t, store); len(p.Global)+len(p.Attached) != 0 || len(store.Snapshot().Rejected()) != 0 {
				t.Error("still there when it was removed")
			}
		})
	}
}

func deny(a *security.Authorization, port uint32) {
	a.Action = security.Action_DENY
	a.Rules = []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{DestinationPorts: []uint32{port}}}}}}}
}

// ofAnotherType is a resource of another type under a policy's name.
func ofAnotherType(t *testing.T, name string) workload.Resource {
	r := workloadtest.Resource(t, pod(nil))
	r.Name = name
	return r
}

// What does not concern the policies of a workload is no reason to judge its
// connections again.
func TestPolicyVersionChangesWithWhatApplies(t *testing.T) {
	store := workloadtest.Store(t, pod(nil), policy("shop", "a", security.Scope_NAMESPACE, security.Action_ALLOW))
	w, _ := applies(t, store)
	before := store.Snapshot().PolicyVersion(w)
	same := func(what string, want bool) {
		t.Helper()
		w, _ := applies(t, store)
		if got := store.Snapshot().PolicyVersion(w) == before; got != want {
			t.Errorf("%s: the same is %t", what, got)
		}
		before = store.Snapshot().PolicyVersion(w)
	}
	workloadtest.Apply(t, store, pod(func(w *api.Workload) {
		w.Uid, w.Addresses = "Kubernetes//Pod/shop/other", workloadtest.Addrs("10.244.1.8")
	}))
	same("another pod", true)
	workloadtest.Apply(t, store, policy("shop", "a", security.Scope_NAMESPACE, security.Action_ALLOW))
	same("the same policy again", true)
	workloadtest.Apply(t, store, policy("shop", "a", security.Scope_NAMESPACE, security.Action_DENY))
	same("a policy", false)
	workloadtest.Apply(t, store, pod(func(w *api.Workload) { w.AuthorizationPolicies = []string{"shop/x"} }))
	same("the pod itself", false)
	remove(store, workload.AuthorizationType, "shop/a")
	same("a policy that is gone", false)
}
