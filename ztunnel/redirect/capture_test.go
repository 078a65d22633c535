package redirect

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

const appPort = 8080

// Two captured pods talk through both their ztunnels, whatever the family, near or far, and neither application can tell:
// each sees the other's address.
func TestCapturedPodsTalkThroughTheirZtunnels(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	client, near, far := a.Pod("client"), a.Pod("near"), b.Pod("far")
	app := client.Start()
	from := a.capture(t, client)
	tunnels := map[*netnstest.Pod]*tunnel{near: a.capture(t, near), far: b.capture(t, far)}
	for _, server := range []*netnstest.Pod{near, far} {
		server.Start().Listen("[::]:8080")
		for _, way := range []struct {
			name    string
			ip      netip.Addr
			client  netip.Addr
			options netnstest.DialOptions
		}{
			{"IPv4", server.IPv4, client.IPv4, netnstest.DialOptions{}},
			{"IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{}},
			{"mapped IPv4", server.IPv4, client.IPv4, netnstest.DialOptions{Mapped: true}},
			{"MPTCP", server.IPv4, client.IPv4, netnstest.DialOptions{MPTCP: true}},
			{"MPTCP IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{MPTCP: true}},
			{"bound to a device", server.IPv4, client.IPv4, netnstest.DialOptions{Device: "eth0"}},
			{"bound to a device, IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{Device: "eth0"}},
			{"with a mark of its own", server.IPv4, client.IPv4, netnstest.DialOptions{Mark: 0x77}},
			{"bound to the pod's address", server.IPv4, client.IPv4, netnstest.DialOptions{Source: client.IPv4}},
			{"bound to the pod's address, IPv6", server.IPv6, client.IPv6, netnstest.DialOptions{Source: client.IPv6}},
		} {
			t.Run(server.Name+"/"+way.name, func(t *testing.T) {
				dst := netip.AddrPortFrom(way.ip, appPort)
				conn, err := app.DialWith(dst, way.options)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := conn.Echo("hello"); err != nil {
					t.Error(err)
				}
				if conn.Remote != dst || conn.Local.Addr() != way.client {
					t.Errorf("client sees %v", conn.Sight)
				}
				if conn.Peer.Local != dst || conn.Peer.Remote.Addr() != way.client {
					t.Errorf("server sees %v", conn.Peer)
				}
				expect(t, from, arrival{bpf.Outbound, way.client, dst})
				expect(t, tunnels[server], arrival{bpf.HBONE, way.client, netip.AddrPortFrom(way.ip, bpf.PortHBONE)})
			})
		}
	}
}

// expect demands that exactly these connections arrived since the last call.
func expect(t testing.TB, u *tunnel, want ...arrival) {
	t.Helper()
	got := u.take()
	if len(got) != len(want) {
		t.Errorf("arrived: %v, want %v", got, want)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("arrived: %v, want %v", got[i], want[i])
		}
	}
}
