package route_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

// What a connection to a service pays for the choice of its endpoint, where
// every endpoint has connections.
func BenchmarkDecide(b *testing.B) {
	sameNode := balanced(api.LoadBalancing_FAILOVER, api.LoadBalancing_NETWORK, api.LoadBalancing_REGION, api.LoadBalancing_ZONE, api.LoadBalancing_NODE)
	for _, n := range []int{10, 1000} {
		for _, c := range []struct {
			name    string
			service func(*api.Service)
			ejected bool
		}{
			{"", balanced(0), false},
			{"/OneEjected", balanced(0), true},
			{"/PreferSameNode", sameNode, false}, // where a tenth of them is
			{"/Affinity", func(s *api.Service) { s.Extensions = affinityOf(b) }, false},
		} {
			b.Run(fmt.Sprint(n, c.name), func(b *testing.B) {
				store := workloadtest.Store(b, config, pod("web", "n1", "1.1"), service("cart", []string{"10.96.0.10"}, c.service))
				known := endpoints.New(endpoints.Config{Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)})
				var pods []proto.Message
				var keys []endpoints.Key
				for i := range n {
					at := fmt.Sprintf("%d.%d", 2+i/250, 1+i%250)
					pods = append(pods, pod(fmt.Sprint("e", i), fmt.Sprint("n", i%10), at, serves(cart)))
					keys = append(keys, endpoints.Key{UID: uid(fmt.Sprint("e", i)), Target: netip.MustParseAddrPort("10.244." + at + ":8080")})
					known.Connect(keys[i], true)
				}
				workloadtest.Apply(b, store, pods...)
				for range endpoints.Threshold {
					if c.ejected {
						lease, _ := known.Connect(keys[0], true)
						lease.Failed("ConnectFailed", func() []endpoints.Key { return keys })
					}
				}
				snapshot := store.Snapshot()
				web, _ := snapshot.WorkloadByUID(uid("web"))
				r := route.Request{Source: web, Destination: netip.MustParseAddrPort("10.96.0.10:80"), Endpoints: known}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := route.Decide(r, snapshot, rand.Uint64N); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
