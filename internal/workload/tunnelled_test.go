package workload_test

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// What is reached by tunnels alone: a strict pod that is captured or to be, and of another the ports that are strict. Each step follows
// the one before, and says whether the addresses and ports are others than before.
func TestWhatIsReachedByTunnelsAlone(t *testing.T) {
	const strict, permissive = mesh.MutualTLS_STRICT, mesh.MutualTLS_PERMISSIVE
	hbone := func(w *api.Workload) { w.TunnelProtocol = api.TunnelProtocol_HBONE }
	store := workload.NewStore()
	before := uint64(0)
	for _, c := range []struct {
		name    string
		mode    mesh.MutualTLS_Mode
		awaits  bool
		ports   []uint32
		change  func(*api.Workload)
		all     bool
		of      []uint16
		another bool
	}{
		{"permissive", permissive, false, nil, hbone, false, nil, false},
		{"strict", strict, false, nil, hbone, true, nil, true},
		{"strict, and captured by nobody", strict, false, nil, nil, false, nil, true},
		{"a port, and captured by nobody", permissive, false, []uint32{5432}, nil, false, nil, false},
		{"a port, to be captured", permissive, true, []uint32{5432}, nil, false, []uint16{5432}, true},
		{"a port, captured", permissive, false, []uint32{5432}, hbone, false, []uint16{5432}, false},
		{"two ports", permissive, false, []uint32{443, 5432}, hbone, false, []uint16{443, 5432}, true},
		{"two ports, elsewhere", permissive, false, []uint32{443, 5432}, func(w *api.Workload) { hbone(w); w.Addresses = workloadtest.Addrs("10.244.1.9") }, false, []uint16{443, 5432}, true},
		{"strict as a whole", strict, true, []uint32{443}, func(w *api.Workload) { w.Addresses = workloadtest.Addrs("10.244.1.9") }, true, nil, true},
		{"a waypoint", strict, false, []uint32{443}, func(w *api.Workload) { hbone(w); w.NativeTunnel = true }, false, nil, true},
		{"of another network", strict, false, []uint32{443}, func(w *api.Workload) { hbone(w); w.Network = "other" }, false, nil, false},
	} {
		extension, err := anypb.New(&mesh.MutualTLS{Mode: c.mode, AwaitsCapture: c.awaits, StrictPorts: c.ports})
		if err != nil {
			t.Fatal(err)
		}
		workloadtest.Apply(t, store, pod(func(w *api.Workload) {
			w.Extensions = []*api.Extension{{Name: workload.MutualTLSExtension, Config: extension}}
			if c.change != nil {
				c.change(w)
			}
		}))
		number, seq := store.Snapshot().Tunnelled()
		found := slices.Collect(maps.Values(maps.Collect(seq)))
		var all bool
		var of []uint16
		if len(found) == 1 {
			all, of = found[0].TunnelsOnly()
		}
		if wanted := c.all || c.of != nil; (len(found) == 1) != wanted || all != c.all || !reflect.DeepEqual(of, c.of) {
			t.Errorf("%s: %d are there, all ports %v, of them %v; want %v, %v", c.name, len(found), all, of, c.all, c.of)
		}
		if (number != before) != c.another {
			t.Errorf("%s: the number went from %d to %d", c.name, before, number)
		}
		before = number
	}
	remove(store, workload.AddressType, podUID)
	if number, _ := store.Snapshot().Tunnelled(); number != before {
		t.Errorf("the number went from %d to %d because of one that was not there", before, number)
	}
}
