package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// An application sees in connect(2) what it sees without the mesh, whichever way its connection goes.
func TestConnectFailsAsWithoutTheMesh(t *testing.T) {
	b := newBed(t)
	a := b.network.Node("a")
	web, near, far := a.Pod("web"), a.Pod("near"), b.network.Node("b").Pod("far")
	outside := b.network.Node("b").Pod("outside")
	for _, server := range []*netnstest.Pod{near, far, outside} {
		server.Start().Listen("[::]:8080")
	}
	gone := &netnstest.Pod{Name: "gone", Node: outside.Node, IPv4: netip.MustParseAddr("10.2.0.99"), IPv6: netip.MustParseAddr("fd00:2::99")}
	ways := []struct {
		name string
		to   *netnstest.Pod
		port uint16
		want unix.Errno
	}{
		{"another node", far, 8080, 0},
		{"another node, closed port", far, 81, unix.ECONNREFUSED},
		{"same node", near, 8080, 0},
		{"same node, closed port", near, 81, unix.ECONNREFUSED},
		{"outside the mesh", outside, 8080, 0},
		{"outside the mesh, closed port", outside, 81, unix.ECONNREFUSED},
		{"a pod that is gone", gone, 8080, unix.EHOSTUNREACH},
	}
	dialAll := func(when string) {
		t.Helper()
		var group sync.WaitGroup
		for _, way := range ways {
			for _, ip := range []netip.Addr{way.to.IPv4, way.to.IPv6} {
				app := web.Start()
				group.Go(func() {
					conn, err := app.DialWith(netip.AddrPortFrom(ip, way.port), netnstest.DialOptions{Timeout: 15 * time.Second})
					if way.want == 0 && err == nil {
						err = conn.Echo("hello")
					}
					if way.want == 0 && err != nil || !errors.Is(err, errno(way.want)) || err != nil && !strings.HasPrefix(err.Error(), "connect: ") {
						t.Errorf("%s, %s, %s: %v, want connect: %v", when, way.name, ip, err, way.want)
					}
				})
			}
		}
		group.Wait()
	}
	dialAll("without the mesh")
	for _, pod := range []*netnstest.Pod{web, near, far} {
		b.capture(pod)
		b.publish(pod, api.TunnelProtocol_HBONE)
	}
	b.publish(outside, api.TunnelProtocol_NONE)
	b.publish(gone, api.TunnelProtocol_HBONE)
	dialAll("captured")
}

// errno is an error, and none if it is zero.
func errno(number unix.Errno) error {
	if number == 0 {
		return nil
	}
	return number
}

// What has no way in the mesh is refused in connect(2), as the node's service proxy does for a service without endpoints.
func TestWhatHasNoWayIsRefusedInConnect(t *testing.T) {
	b := newBed(t)
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	cart.Start().Listen("[::]:8080")
	b.dataplane.policy = deny{}
	for _, pod := range []*netnstest.Pod{web, cart} {
		b.capture(pod)
		b.publish(pod, api.TunnelProtocol_HBONE)
	}
	workloadtest.Apply(t, b.store, &api.Service{
		Name: "empty", Namespace: "shop", Hostname: "empty.shop.svc.cluster.local",
		Addresses: workloadtest.NetworkAddrs("10.96.0.1"), Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}},
	})
	app := web.Start()
	for name, to := range map[string]string{"service without endpoints": "10.96.0.1:80", "no such port": "10.96.0.1:81", "denied": cart.IPv4.String() + ":8080"} {
		_, err := app.Dial(netip.MustParseAddrPort(to))
		if !errors.Is(err, unix.ECONNREFUSED) || !strings.HasPrefix(err.Error(), "connect: ") {
			t.Errorf("%s: %v, want connect: connection refused", name, err)
		}
	}
}

// A node on which connections cannot be held says so, and captures all the same.
func TestWhatCannotBeHeldIsAProblem(t *testing.T) {
	b := newBed(t)
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	cart.Start().Listen("[::]:8080")
	captured := b.capture(web).(*capture)
	b.publish(web, api.TunnelProtocol_HBONE)
	b.publish(cart, api.TunnelProtocol_NONE)
	if problems := b.problems(); len(problems) != 0 {
		t.Errorf("problems %q", problems)
	}
	mustDial(t, web.Start(), cart.IPv4)
	if err := b.held(captured.redirect.Hold(func(*redirect.Held) {})); err == nil {
		t.Error("two hold the same pod's connections")
	}
	if problems := b.problems(); len(problems) != 1 || !strings.HasPrefix(problems[0], "HoldMissing: ") {
		t.Errorf("problems %q", problems)
	}
	mustDial(t, web.Start(), cart.IPv4)
}

type deny struct{ everybody }

func (deny) Admit(context.Context, *conns.Attempt) error {
	return conns.Fail(conns.PolicyDenied, errors.New("nobody is admitted"))
}

// A host that says nothing is waited for as long as the application's own kernel would: longer than ztunnel waits for a
// tunnel, which it therefore tries again.
func TestSilentHostTimesOutAsWithoutTheMesh(t *testing.T) {
	b := newBed(t)
	web, stranger := b.network.Node("a").Pod("web"), b.network.Node("a").Pod("stranger")
	for _, pod := range []*netnstest.Pod{web, stranger} {
		if err := pod.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syn_retries", []byte("3"), 0) }); err != nil {
			t.Fatal(err)
		}
	}
	b.capture(web)
	b.publish(web, api.TunnelProtocol_HBONE)
	var group sync.WaitGroup
	for i, protocol := range []api.TunnelProtocol{api.TunnelProtocol_HBONE, api.TunnelProtocol_NONE} {
		silent := &netnstest.Pod{
			Name: fmt.Sprintf("silent%d", i), Node: b.network.Node("b"),
			IPv4: netip.MustParseAddr(fmt.Sprintf("10.2.0.%d", 90+i)), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:2::%d", 90+i)),
		}
		if err := b.network.Node("b").Do(func() error { return noAnswer(silent) }); err != nil {
			t.Fatal(err)
		}
		b.publish(silent, protocol)
		for _, ip := range []netip.Addr{silent.IPv4, silent.IPv6} {
			mesh, plain := web.Start(), stranger.Start()
			group.Go(func() {
				without := make(chan time.Duration)
				go func() { without <- timeOut(t, plain, ip) }()
				with := timeOut(t, mesh, ip)
				if difference := (with - <-without).Abs(); difference > time.Second {
					t.Errorf("%s, %s: after %s, which differs by %s from without the mesh", ip, protocol, with, difference)
				}
			})
		}
	}
	group.Wait()
}

// timeOut tells how long connect(2) took to time out.
func timeOut(t *testing.T, app *netnstest.App, ip netip.Addr) time.Duration {
	start := time.Now()
	_, err := app.DialWith(netip.AddrPortFrom(ip, 8080), netnstest.DialOptions{Timeout: time.Minute})
	if !errors.Is(err, unix.ETIMEDOUT) || !strings.HasPrefix(err.Error(), "connect: ") {
		t.Errorf("%s: %v, want connect: connection timed out", ip, err)
	}
	return time.Since(start)
}

// noAnswer makes a node send what is for a pod to where nobody is.
func noAnswer(pod *netnstest.Pod) error {
	bridge, err := netlink.LinkByName("pods")
	if err != nil {
		return err
	}
	for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
		if err := netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 99},
		}); err != nil {
			return err
		}
	}
	return nil
}
