package feed_test

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// A waypoint asks for what is its own by its alias, and not for what nodes alone
// work with.
func TestAWaypointAsksForItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		client := run(t, c, func(config *feed.Config) {
			config.Node.Role, config.Waypoint = "waypoint", "shop/way"
		})
		s := c.accept()
		for _, typeURL := range workload.WaypointTypes {
			r := s.request()
			if r.GetTypeUrl() != typeURL {
				t.Fatalf("asked for %s, want %s", r.GetTypeUrl(), typeURL)
			}
			var want []string
			if typeURL == workload.BindingType || typeURL == workload.RequestPolicyType {
				want = []string{"waypoint/shop/way"}
			}
			if !slices.Equal(r.GetResourceNamesSubscribe(), want) {
				t.Errorf("%s: subscribed to %v, want %v", typeURL, r.GetResourceNamesSubscribe(), want)
			}
		}
		s.push(workload.ConfigType, nil, &mesh.Config{TrustDomain: "cluster.local"})
		s.pushNothing(workload.TrustBundleType, workload.RevocationListType, workload.AddressType, workload.RequestPolicyType)
		synctest.Wait()
		if isSynced(client) {
			t.Fatal("synced before the bindings have come")
		}
		// That there are none is an answer too: it names the alias.
		s.push(workload.BindingType, []string{"waypoint/shop/way"})
		synctest.Wait()
		if !isSynced(client) {
			t.Fatal("not synced")
		}
		ack := s.push(workload.BindingType, nil, &mesh.Binding{Target: &mesh.Binding_Service{Service: "shop/cart"}, Waypoint: "way"})
		if ack.GetErrorDetail() == nil {
			t.Error("a binding that cannot be read was acknowledged")
		}
	})
}
