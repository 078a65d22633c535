package netnstest

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m, nil) }

func TestApplicationsReachEachOther(t *testing.T) {
	network := New(t, "a", "b")
	server := network.Node("a").Pod("server")
	app := server.Start()
	app.Listen("[::]:8080")
	app.ListenUDP("[::]:53")

	near, far := network.Node("a").Pod("near"), network.Node("b").Pod("far")
	for _, client := range []struct {
		name     string
		in       *NetNS
		ip4, ip6 netip.Addr
	}{
		{"pod of the same node", near.NetNS, near.IPv4, near.IPv6},
		{"pod of another node", far.NetNS, far.IPv4, far.IPv6},
		{"another node", network.Node("b").NetNS, network.Node("b").IPv4, network.Node("b").IPv6},
	} {
		t.Run(client.name, func(t *testing.T) {
			from := client.in.Start()
			for _, way := range []struct{ to, sees netip.Addr }{{server.IPv4, client.ip4}, {server.IPv6, client.ip6}} {
				conn, err := from.Dial(netip.AddrPortFrom(way.to, 8080))
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.Echo("hello"); err != nil {
					t.Error(err)
				}
				if conn.Peer.Remote.Addr() != way.sees || conn.Peer.Local != conn.Remote {
					t.Errorf("server sees %v, client %v", conn.Peer, conn.Sight)
				}
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				sight, err := from.AskUDP(netip.AddrPortFrom(way.to, 53))
				if err != nil || sight.Remote.Addr() != way.sees {
					t.Errorf("UDP: server sees %v, %v", sight, err)
				}
			}
			if _, err := from.Dial(netip.AddrPortFrom(server.IPv4, 81)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("closed port: %v, want connection refused", err)
			}
		})
	}
}

func TestTheWireLosesWhatItIsTold(t *testing.T) {
	network := New(t, "a", "b")
	pod := network.Node("a").Pod("server")
	server := pod.Start()
	server.ListenUDP("[::]:53")
	client := network.Node("b").Pod("client").Start()
	to := netip.AddrPortFrom(pod.IPv4, 53)

	all := network.Lose(1)
	if _, err := client.DialWith(netip.AddrPortFrom(to.Addr(), 80), DialOptions{Timeout: 100 * time.Millisecond}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("over a wire that loses everything: %v", err)
	}
	all.Stop()
	if lost, err := all.Packets(); err != nil || lost == 0 {
		t.Errorf("%d packets lost, %v", lost, err)
	}
	none := network.Lose(0)
	for range 20 {
		if _, err := client.AskUDP(to); err != nil {
			t.Fatalf("over a wire that loses nothing: %v", err)
		}
	}
	if lost, err := none.Packets(); err != nil || lost > 0 {
		t.Errorf("%d packets lost, %v", lost, err)
	}
}

func TestAnUnpluggedPodIsSilent(t *testing.T) {
	node := New(t, "a").Node("a")
	pod := node.Pod("server")
	pod.Start().Listen("[::]:8080")
	client := node.Pod("client").Start()
	to := netip.AddrPortFrom(pod.IPv4, 8080)
	conn, err := client.Dial(to)
	if err != nil {
		t.Fatal(err)
	}
	if listening := pod.Sockets(); len(listening) != 2 { // the listener, and the connection
		t.Errorf("sockets %v", listening)
	}
	pod.Unplug()
	if err := conn.Echo("anybody?"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("from a pod without a link: %v", err)
	}
}
