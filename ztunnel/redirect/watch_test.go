package redirect

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// An application with CAP_NET_ADMIN deletes the rules and the routes by which connections come to ztunnel: they are there again,
// and carry connections again.
func TestADeletedWayToZtunnelIsPutBack(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, server := a.Pod("pod"), network.Node("b").Pod("server")
	server.Start().Listen("[::]:8080")
	u := a.capture(t, pod)
	for _, ip := range []netip.Addr{server.IPv4, server.IPv6} {
		way := func() (rules, routes int) {
			pod.Do(func() error {
				all, _ := netlink.RuleListFiltered(family(ip), &netlink.Rule{Priority: rulePriority}, netlink.RT_FILTER_PRIORITY)
				found, _ := netlink.RouteListFiltered(family(ip), &netlink.Route{Table: routeTable, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
				rules, routes = len(all), len(found)
				return nil
			})
			return rules, routes
		}
		if rules, routes := way(); rules != 1 || routes != 1 {
			t.Fatalf("to begin with %d rules and %d routes for %s, want one of each", rules, routes, ip)
		}
		for name, remove := range map[string]func() error{
			"rule": func() error { return deleteMarkRules(ip) },
			"route": func() error {
				found, err := netlink.RouteListFiltered(family(ip), &netlink.Route{Table: routeTable, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
				if err != nil || len(found) != 1 {
					return fmt.Errorf("%v %w", found, err)
				}
				return netlink.RouteDel(&found[0])
			},
		} {
			if err := pod.Do(remove); err != nil {
				t.Fatalf("delete %s of %s: %v", name, ip, err)
			}
			eventually(t, "the "+name+" for "+ip.String()+" is there again", func() bool { rules, routes := way(); return rules == 1 && routes == 1 })
			mustDial(t, pod.Start(), netip.AddrPortFrom(ip, appPort))
		}
	}
	if arrived := u.take(); len(arrived) != 4 {
		t.Errorf("%d connections came to ztunnel, want 4: %v", len(arrived), arrived)
	}
}
