package workload_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func remove(store *workload.Store, typeURL string, names ...string) []workload.Rejection {
	return store.Apply(workload.Delta{Type: typeURL, Removed: names})
}

func TestUpsertReplaceRemove(t *testing.T) {
	store := workload.NewStore()
	inService := map[string]*api.PortList{svcKey: {Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}}}

	workloadtest.Apply(t, store, service(nil), pod(func(w *api.Workload) { w.Services = inService }))
	s := store.Snapshot()
	if w, ok := s.WorkloadByAddr(addr("fd00:10::7")); !ok || w.UID != podUID {
		t.Error("the workload is not found by its address")
	}
	if got, ok := s.ServiceByAddr(addr("10.96.0.10")); !ok || got.Key != svcKey {
		t.Error("the service is not found by its address")
	}
	if got := s.Endpoints(svcKey); len(got) != 1 || got[0].UID != podUID {
		t.Errorf("endpoints are %v", got)
	}

	workloadtest.Apply(t, store, pod(func(w *api.Workload) { w.Addresses = workloadtest.Addrs("10.244.1.8") }))
	s = store.Snapshot()
	if _, ok := s.WorkloadByAddr(addr("10.244.1.7")); ok {
		t.Error("it is still found by the address that it had")
	}
	if _, ok := s.WorkloadByAddr(addr("10.244.1.8")); !ok {
		t.Error("it is not found by its new address")
	}
	if got := s.Endpoints(svcKey); len(got) != 0 {
		t.Errorf("it still is an endpoint: %v", got)
	}

	if rejected := remove(store, workload.AddressType, podUID, svcKey, "never/heard-of"); len(rejected) != 0 {
		t.Errorf("removal rejected: %v", rejected)
	}
	s = store.Snapshot()
	if s.Count(workload.AddressType) != 0 {
		t.Errorf("%d resources are left", s.Count(workload.AddressType))
	}
	if _, ok := s.ServiceByAddr(addr("10.96.0.10")); ok {
		t.Error("the removed service is found by its address")
	}
	if got, want := s.Version(), workload.NewStore().Snapshot().Version(); got != want {
		t.Error("an emptied store has another version than an empty one")
	}
}

// A name stands for one thing: what it was before goes when it becomes another.
func TestNameChangesKind(t *testing.T) {
	store := workloadtest.Store(t, pod(func(w *api.Workload) { w.Uid = svcKey }))
	workloadtest.Apply(t, store, service(nil))
	if _, ok := store.Snapshot().WorkloadByUID(svcKey); ok {
		t.Error("it still is a workload")
	}
	workloadtest.Apply(t, store, pod(func(w *api.Workload) { w.Uid = svcKey }))
	if _, ok := store.Snapshot().Service(svcKey); ok {
		t.Error("it still is a service")
	}
}

// Who holds a snapshot sees nothing of what happens after it.
func TestSnapshotsDoNotChange(t *testing.T) {
	store := workloadtest.Store(t, pod(nil))
	before := store.Snapshot()
	version := before.Version()
	select {
	case <-before.Changed():
		t.Fatal("changed before anything did")
	default:
	}

	workloadtest.Apply(t, store, pod(func(w *api.Workload) { w.TunnelProtocol = api.TunnelProtocol_HBONE }))
	select {
	case <-before.Changed():
	default:
		t.Error("not told of the change")
	}
	if w, _ := before.WorkloadByUID(podUID); w.Protocol != workload.Plain || before.Version() != version {
		t.Error("the old snapshot changed")
	}
	if w, _ := store.Snapshot().WorkloadByAddr(addr("10.244.1.7")); w.Protocol != workload.HBONE {
		t.Error("the new snapshot has the old workload")
	}
}

// A controller that sends again what is known wakes nobody.
func TestTheSameAgainIsNoChange(t *testing.T) {
	all := []proto.Message{
		pod(nil), service(nil), &mesh.Config{TrustDomain: "cluster.local"},
		&security.Authorization{Name: "p", Namespace: "shop"},
	}
	store := workloadtest.Store(t, all...)
	before := store.Snapshot()
	workloadtest.Apply(t, store, all...)
	if store.Snapshot() != before {
		t.Error("a new snapshot was published")
	}
}

// The version depends on the contents, not on the way to them.
func TestVersionIsOfTheContents(t *testing.T) {
	var messages []proto.Message
	for i := range 20 {
		messages = append(messages, pod(func(w *api.Workload) { w.Uid, w.Node = fmt.Sprint("uid-", i), "n1" }))
	}
	a := workloadtest.Store(t, messages...)
	b := workload.NewStore()
	for i, m := range slices.Backward(messages) {
		workloadtest.Apply(t, b, pod(func(w *api.Workload) { w.Uid = fmt.Sprint("uid-", i) }))
		workloadtest.Apply(t, b, m)
	}
	workloadtest.Apply(t, b, service(nil))
	if a.Snapshot().Version() == b.Snapshot().Version() {
		t.Error("different contents, same version")
	}
	remove(b, workload.AddressType, svcKey)
	if a.Snapshot().Version() != b.Snapshot().Version() {
		t.Error("same contents, different versions")
	}
}

// A bad resource costs only itself: what was known of it stays, the others of
// its delta are applied.
func TestRejectionKeepsTheFormerState(t *testing.T) {
	store := workloadtest.Store(t, pod(nil))
	bad := workloadtest.Resource(t, pod(func(w *api.Workload) { w.TunnelProtocol = 77 }))
	good := workloadtest.Resource(t, service(nil))

	rejected := store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{bad, good}})
	if len(rejected) != 1 || rejected[0].Name != podUID {
		t.Fatalf("rejected %v", rejected)
	}
	s := store.Snapshot()
	if w, ok := s.WorkloadByUID(podUID); !ok || w.Protocol != workload.Plain {
		t.Error("the former state is gone")
	}
	if _, ok := s.Service(svcKey); !ok {
		t.Error("the good resource was not applied")
	}
	if len(s.Rejected()) != 1 {
		t.Error("the rejection is not remembered")
	}
}

// The addresses of what could not be read are remembered, until it can be read
// or is gone: they belong to the mesh, though nobody knows how to reach them.
func TestRejectedAddressesAreRemembered(t *testing.T) {
	bad := workloadtest.Resource(t, pod(func(w *api.Workload) {
		w.TunnelProtocol = 77
		w.Addresses = append(w.Addresses, []byte{1})
	}))
	bad.Aliases = []string{"/10.244.1.99", "other-network/10.244.1.98"}
	reject := func() *workload.Store {
		store := workload.NewStore()
		store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{bad}})
		for _, a := range []string{"10.244.1.7", "fd00:10::7", "10.244.1.99"} {
			if r, ok := store.Snapshot().RejectedByAddr(addr(a)); !ok || r.Name != podUID {
				t.Errorf("%s is not remembered", a)
			}
		}
		if _, ok := store.Snapshot().RejectedByAddr(addr("10.244.1.98")); ok {
			t.Error("an address of another network is remembered")
		}
		return store
	}

	store := reject()
	workloadtest.Apply(t, store, pod(nil))
	if len(store.Snapshot().Rejected()) != 0 {
		t.Error("still remembered after it could be read")
	}
	store = reject()
	remove(store, workload.AddressType, podUID)
	if len(store.Snapshot().Rejected()) != 0 {
		t.Error("still remembered after it was removed")
	}
}

// The node's address identifies none of the pods that share it, and addresses
// of other networks mean nothing here; as endpoints they count.
func TestAddressesThatIdentifyNobody(t *testing.T) {
	for name, change := range map[string]func(*api.Workload){
		"host network":  func(w *api.Workload) { w.NetworkMode = api.NetworkMode_HOST_NETWORK },
		"other network": func(w *api.Workload) { w.Network = "elsewhere" },
	} {
		store := workloadtest.Store(t, pod(func(w *api.Workload) {
			change(w)
			w.Services = map[string]*api.PortList{svcKey: {}}
		}))
		if _, ok := store.Snapshot().WorkloadByAddr(addr("10.244.1.7")); ok {
			t.Errorf("%s: found by address", name)
		}
		if len(store.Snapshot().Endpoints(svcKey)) != 1 {
			t.Errorf("%s: no endpoint", name)
		}
		remove(store, workload.AddressType, podUID)
		if len(store.Snapshot().Endpoints(svcKey)) != 0 {
			t.Errorf("%s: still an endpoint", name)
		}
	}
}

// While an address is handed from one pod to the next, both may claim it.
func TestTwoClaimsForAnAddress(t *testing.T) {
	const older, newer = "Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b"
	store := workloadtest.Store(t,
		pod(func(w *api.Workload) { w.Uid = older }),
		pod(func(w *api.Workload) { w.Uid, w.TunnelProtocol = newer, api.TunnelProtocol_HBONE }))
	if w, _ := store.Snapshot().WorkloadByAddr(addr("10.244.1.7")); w.UID != newer {
		t.Errorf("%s wins, which would be reached in plaintext", w.UID)
	}
	remove(store, workload.AddressType, newer)
	if w, ok := store.Snapshot().WorkloadByAddr(addr("10.244.1.7")); !ok || w.UID != older {
		t.Error("the claim that is left is not found")
	}
}

func TestConfig(t *testing.T) {
	store := workload.NewStore()
	if s := store.Snapshot(); s.Configured() || s.TrustDomain() != "cluster.local" || s.InPodRange(addr("10.244.1.1")) {
		t.Error("an empty store is configured")
	}
	workloadtest.Apply(t, store, &mesh.Config{TrustDomain: "example.org", ClusterId: "Kubernetes", PodRanges: []string{"10.244.1.5/16", "fd00:10::/56"}, ServiceRanges: []string{"10.96.0.1/12"}})
	check := func() {
		t.Helper()
		s := store.Snapshot()
		if !s.Configured() || s.TrustDomain() != "example.org" || s.ClusterID() != "Kubernetes" {
			t.Error("the config is not in force")
		}
		for text, want := range map[string]bool{"10.244.200.1": true, "::ffff:10.244.1.1": true, "10.245.0.1": false, "fd00:10::1": true, "fd00:11::1": false} {
			if got := s.InPodRange(addr(text)); got != want {
				t.Errorf("InPodRange(%s) is %t", text, got)
			}
		}
		for text, want := range map[string]bool{"10.111.0.1": true, "::ffff:10.96.0.1": true, "10.244.1.1": false} {
			if got := s.InServiceRange(addr(text)); got != want {
				t.Errorf("InServiceRange(%s) is %t", text, got)
			}
		}
	}
	check()
	if rejected := remove(store, workload.ConfigType, workload.ConfigName); len(rejected) != 1 {
		t.Error("the removal was accepted")
	}
	check()
}

func TestRejectionIsAnError(t *testing.T) {
	cause := errors.New("cause")
	if err := error(workload.Rejection{Err: cause}); !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
}

// Readers need no lock; each sees a consistent mesh.
func TestReadersWhileApplying(t *testing.T) {
	store := workload.NewStore()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := store.Snapshot()
				for _, w := range s.Endpoints(svcKey) {
					if found, ok := s.WorkloadByUID(w.UID); !ok || found != w {
						t.Errorf("endpoint %s is not the workload of its snapshot", w.UID)
						return
					}
				}
			}
		})
	}
	for i := range 300 {
		uid := fmt.Sprint("uid-", rand.IntN(50))
		if i%3 == 0 {
			remove(store, workload.AddressType, uid)
			continue
		}
		workloadtest.Apply(t, store, pod(func(w *api.Workload) {
			w.Uid, w.Node = uid, fmt.Sprint(i)
			w.Services = map[string]*api.PortList{svcKey: {}}
		}))
	}
	close(stop)
	readers.Wait()
}

// One pod changes in a mesh of 100,000.
func BenchmarkApplyOneOf100000(b *testing.B) {
	store := workload.NewStore()
	var delta workload.Delta
	delta.Type = workload.AddressType
	one := func(i, generation int) workload.Resource {
		return workloadtest.Resource(b, pod(func(w *api.Workload) {
			w.Uid, w.Node = fmt.Sprint("Kubernetes//Pod/shop/pod-", i), fmt.Sprint(generation)
			w.Addresses = [][]byte{{10, byte(i >> 16), byte(i >> 8), byte(i)}}
			w.Services = map[string]*api.PortList{fmt.Sprintf("shop/s%d", i%2000): {}}
		}))
	}
	for i := range 100_000 {
		delta.Upserts = append(delta.Upserts, one(i, 0))
	}
	store.Apply(delta)
	changes := make([]workload.Delta, 1000)
	for i := range changes {
		changes[i] = workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{one(i*97, 1)}}
	}
	for i := 0; b.Loop(); i++ {
		change := changes[i%len(changes)]
		change.Upserts[0].Version = fmt.Sprint(i)
		store.Apply(change)
	}
}

// The heaviest endpoint is known whichever comes, changes or goes.
func TestHeaviestEndpoint(t *testing.T) {
	const key = svcKey
	endpoint := func(name string, weight uint32) *api.Workload {
		return &api.Workload{
			Uid: name, Name: name, Namespace: "shop", Capacity: wrapperspb.UInt32(weight),
			Services: map[string]*api.PortList{key: {Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}}},
		}
	}
	store := workloadtest.Store(t)
	want := func(want uint32) {
		t.Helper()
		if got := store.Snapshot().HeaviestEndpoint(key); got != want {
			t.Errorf("heaviest %d, want %d", got, want)
		}
	}
	want(1)
	workloadtest.Apply(t, store, endpoint("a", 1), endpoint("b", 7), endpoint("c", 3))
	want(7)
	before := store.Snapshot()
	workloadtest.Apply(t, store, endpoint("b", 2))
	want(3)
	store.Apply(workload.Delta{Type: workload.AddressType, Removed: []string{"b", "c"}})
	want(1)
	workloadtest.Apply(t, store, endpoint("a", 0))
	want(0)
	if got := before.HeaviestEndpoint(key); got != 7 {
		t.Errorf("an earlier snapshot changed to %d", got)
	}
}

// A Binding that is named for its waypoint, because another takes over from it, is the
// same for that; and a waypoint never lacks it when its name changes.
func TestABindingIsNamedDifferently(t *testing.T) {
	const of = svcKey + "@shop/way"
	binding := &mesh.Binding{Target: &mesh.Binding_Service{Service: svcKey}, Waypoint: "shop/way"}
	plain := workloadtest.Resource(t, binding)
	binding.Policies = []string{"shop/a"}
	named := workloadtest.Resource(t, binding)
	named.Name = of
	binding.Waypoint = "shop/other"
	others := workloadtest.Resource(t, binding)
	others.Name = of

	store := workload.NewStore()
	store.Apply(workload.Delta{Type: workload.BindingType, Upserts: []workload.Resource{plain}})
	version := store.Snapshot().Version()
	for _, step := range []struct {
		delta    workload.Delta
		policies int
	}{
		{workload.Delta{Upserts: []workload.Resource{named}, Removed: []string{plain.Name}}, 1},
		{workload.Delta{Upserts: []workload.Resource{plain}, Removed: []string{of}}, 0},
	} {
		step.delta.Type = workload.BindingType
		if rejected := store.Apply(step.delta); len(rejected) > 0 {
			t.Fatal(rejected)
		}
		if b, ok := store.Snapshot().Binding(svcKey); !ok || b.Key != svcKey || len(b.Policies) != step.policies {
			t.Errorf("after %v: %+v", step.delta.Removed, b)
		}
	}
	if store.Snapshot().Version() != version {
		t.Error("the same contents have another version")
	}
	if rejected := store.Apply(workload.Delta{Type: workload.BindingType, Upserts: []workload.Resource{others}}); len(rejected) != 1 {
		t.Errorf("another waypoint's: %v", rejected)
	}
	remove(store, workload.BindingType, svcKey)
	if _, ok := store.Snapshot().Binding(svcKey); ok {
		t.Error("it is there after it was removed")
	}
}
