package workload_test

import (
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// A mode that cannot be read is never a reason to be less strict: not a first one, and not a later one.
func TestUnreadableModesAreStrict(t *testing.T) {
	const unreadable = mesh.MutualTLS_Mode(99)
	web := func(mode mesh.MutualTLS_Mode) *api.Workload {
		extension, err := anypb.New(&mesh.MutualTLS{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		return &api.Workload{
			Uid: workload.PodUID("Kubernetes", "shop", "web"), Name: "web", Namespace: "shop", Addresses: workloadtest.Addrs("10.0.0.1"),
			Extensions: []*api.Extension{{Name: workload.MutualTLSExtension, Config: extension}},
		}
	}
	for name, c := range map[string]struct {
		namespace, before, now mesh.MutualTLS_Mode // 0: nothing is said
		strict, known          bool
	}{
		"nothing":                         {0, 0, 0, false, false},
		"permissive":                      {0, 0, mesh.MutualTLS_PERMISSIVE, false, true},
		"the first, nobody may be strict": {0, 0, unreadable, false, true},
		"the first":                       {mesh.MutualTLS_STRICT, 0, unreadable, true, true},
		"the first, namespace unreadable": {unreadable, 0, unreadable, true, true},
		"a later, was permissive":         {mesh.MutualTLS_STRICT, mesh.MutualTLS_PERMISSIVE, unreadable, true, true},
		"a later, was strict":             {0, mesh.MutualTLS_STRICT, unreadable, true, true},
		"readable again":                  {mesh.MutualTLS_STRICT, unreadable, mesh.MutualTLS_PERMISSIVE, false, true},
	} {
		store := workload.NewStore()
		if c.namespace != 0 {
			store.Apply(workload.Delta{Type: workload.NamespaceType, Upserts: []workload.Resource{
				workloadtest.Resource(t, &mesh.Namespace{Name: "shop", MutualTls: c.namespace}),
			}})
		}
		for _, mode := range []mesh.MutualTLS_Mode{c.before, c.now} {
			if mode != 0 {
				store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{workloadtest.Resource(t, web(mode))}})
			}
		}
		if strict, known := store.Snapshot().Strict(web(0).Uid, "shop"); strict != c.strict || known != c.known {
			t.Errorf("%s: strict %v, known %v; want %v, %v", name, strict, known, c.strict, c.known)
		}
		if c.namespace == unreadable && !store.Snapshot().Namespace("shop").EgressDenied {
			t.Errorf("%s: the way out is open", name)
		}
	}
}
