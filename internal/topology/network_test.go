package topology_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/topology"
)

func TestMain(m *testing.M) { netnstest.Main(m, nil) }

// Pods that talk across a node keep doing so when others are added to it: what
// they know of the node stays true.
func TestNodeKeepsItsHardwareAddressWhenPodsAreAdded(t *testing.T) {
	network, err := topology.New("a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	node := network.Node("a")
	var before string
	for range 8 {
		if _, err := node.AddPod("pod"); err != nil {
			t.Fatal(err)
		}
		err := node.Do(func() error {
			bridge, err := netlink.LinkByName("pods")
			if err != nil {
				return err
			}
			now := bridge.Attrs().HardwareAddr.String()
			if before != "" && now != before {
				t.Errorf("the bridge was %s and is %s", before, now)
			}
			before = now
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
