package workload_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// Every node holds every workload: what one takes is multiplied by both.
func TestWorkloadsAreSmall(t *testing.T) {
	const workloads, perService, limit = 20_000, 50, 800 // bytes
	key := func(service int) string { return fmt.Sprintf("shop/service-%d.shop.svc.cluster.local", service) }
	resource := func(i int) workload.Resource {
		owner := fmt.Sprintf("service-%d", i/perService)
		name := fmt.Sprintf("%s-6d4cf56db6-%05d", owner, i)
		return workloadtest.Resource(t, &api.Workload{
			Uid: workload.PodUID("Kubernetes", "shop", name), Name: name, Namespace: "shop", ClusterId: "Kubernetes",
			Addresses: [][]byte{{10, byte(i >> 16), byte(i >> 8), byte(i)}}, Node: fmt.Sprintf("worker-%d", i/100),
			Locality:       &api.Locality{Region: "region", Zone: "zone"},
			ServiceAccount: owner, CanonicalName: owner, CanonicalRevision: "latest", WorkloadName: owner,
			Services: map[string]*api.PortList{key(i / perService): {Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}}},
		})
	}
	heap := func() int {
		var stats runtime.MemStats
		runtime.GC() // twice: what is weakly held goes with the second
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return int(stats.HeapAlloc)
	}
	store := workload.NewStore()
	empty := heap()
	for _, half := range []int{0, workloads / 2} {
		delta := workload.Delta{Type: workload.AddressType}
		for i := range workloads / 2 {
			delta.Upserts = append(delta.Upserts, resource(half+i))
		}
		if rejected := store.Apply(delta); len(rejected) > 0 {
			t.Fatal(rejected[0])
		}
	}
	if each := (heap() - empty) / workloads; each > limit {
		t.Errorf("a workload takes %d bytes, at most %d are wanted", each, limit)
	}
	if endpoints := store.Snapshot().Endpoints(key(3)); len(endpoints) != perService {
		t.Errorf("%d endpoints", len(endpoints))
	}
}

// Endpoints share the ports that they have in common, and no others.
func TestEndpointsShareNoOthersPorts(t *testing.T) {
	const service = "shop/cart.shop.svc.cluster.local"
	port := func(service, target uint32) *api.Port { return &api.Port{ServicePort: service, TargetPort: target} }
	endpoint := func(i int, ports []*api.Port) *api.Workload {
		name := fmt.Sprint("pod-", i)
		return &api.Workload{
			Uid: workload.PodUID("Kubernetes", "shop", name), Name: name, Namespace: "shop", Addresses: [][]byte{{10, 0, 0, byte(i + 1)}},
			Services: map[string]*api.PortList{service: {Ports: ports}},
		}
	}
	store := workload.NewStore()
	for i, test := range []struct {
		ports []*api.Port
		want  []workload.Port
	}{
		{[]*api.Port{port(80, 8080)}, []workload.Port{{Service: 80, Target: 8080}}},
		{[]*api.Port{port(80, 8080)}, []workload.Port{{Service: 80, Target: 8080}}},
		{[]*api.Port{port(80, 9090)}, []workload.Port{{Service: 80, Target: 9090}}},
		{[]*api.Port{port(80, 9090), port(443, 8443)}, []workload.Port{{Service: 80, Target: 9090}, {Service: 443, Target: 8443}}},
		{[]*api.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: api.AppProtocol_GRPC}}, []workload.Port{{Service: 80, Target: 8080, App: "GRPC"}}},
		{[]*api.Port{port(81, 8080)}, []workload.Port{{Service: 81, Target: 8080}}},
		{nil, nil},
	} {
		w := endpoint(i, test.ports)
		workloadtest.Apply(t, store, w)
		known, ok := store.Snapshot().WorkloadByUID(w.GetUid())
		if !ok || !slices.Equal(known.Services[service], test.want) {
			t.Errorf("pod %d has %v, want %v", i, known.Services, test.want)
		}
	}
	// What others said makes nothing good that is wrong.
	store = workload.NewStore()
	workloadtest.Apply(t, store, endpoint(0, []*api.Port{port(80, 8080)}))
	wrong := workloadtest.Resource(t, endpoint(1, []*api.Port{port(80, 0)}))
	if rejected := store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{wrong}}); len(rejected) != 1 {
		t.Error("a target port of 0 was accepted")
	}
}
