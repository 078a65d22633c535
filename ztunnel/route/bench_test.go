package route_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// What a connection to a service pays for the choice of its endpoint.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store := workloadtest.Store(b, config, pod("web", "n1", "1.1"), service("cart", []string{"10.96.0.10"}))
			for i := range n {
				workloadtest.Apply(b, store, pod(fmt.Sprint("e", i), "n2", fmt.Sprintf("2.%d", 1+i%250), serves(cart)))
			}
			snapshot := store.Snapshot()
			web, _ := snapshot.WorkloadByUID(uid("web"))
			r := route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80")}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := route.Decide(r, snapshot, rand.Uint64N); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
