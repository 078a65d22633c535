package feed_test

import (
	"maps"
	"testing"
	"testing/synctest"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// The controller is told of troubles once, of what is over too, and of all there are by
// every new stream.
func TestTroublesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig)
		told := func(r *discovery.DeltaDiscoveryRequest, want map[string]string) {
			t.Helper()
			var got mesh.Troubles
			if details := r.GetErrorDetail().GetDetails(); r.GetTypeUrl() != workload.ConfigType || r.GetResponseNonce() != "" || len(details) != 1 || details[0].UnmarshalTo(&got) != nil || !maps.Equal(got.GetResources(), want) {
				t.Fatalf("told %v, want %v", r, want)
			}
		}
		f.Trouble(workload.ConfigType, nil)
		s.quiet()
		f.Trouble(workload.ConfigType, map[string]string{"mesh": "no keys"})
		told(s.request(), map[string]string{"mesh": "no keys"})
		f.Trouble(workload.ConfigType, map[string]string{"mesh": "no keys"})
		s.quiet()
		s.cut()

		s = c.accept()
		s.first()
		told(s.request(), map[string]string{"mesh": "no keys"})
		s.pushNothing(workload.Types[:]...)
		f.Trouble(workload.ConfigType, map[string]string{})
		told(s.request(), nil)
		s.cut()

		s = c.accept()
		s.first()
		s.quiet()
	})
}
