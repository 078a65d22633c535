package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// What cannot be reached fails connect(2) with the errno that it has without the mesh; what can is connected.
func TestConnectFailsAsWithoutTheMesh(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	client, outside, server := a.Pod("client"), a.Pod("outside"), network.Node("b").Pod("server")
	server.Start().Listen("[::]:8080")
	captured, plain := client.Start(), outside.Start()
	for _, pod := range []*netnstest.Pod{client, outside} {
		if err := pod.Do(addDeadEnds); err != nil {
			t.Fatal(err)
		}
	}
	a.capture(t, client)
	before := verdicts(t, a)
	var n uint64
	for _, options := range []netnstest.DialOptions{{}, {MPTCP: true}, {Mapped: true}} {
		for _, way := range []struct {
			name string
			to   netip.AddrPort
			want unix.Errno
		}{
			{"closed port", netip.AddrPortFrom(server.IPv4, 81), unix.ECONNREFUSED},
			{"closed port, IPv6", netip.AddrPortFrom(server.IPv6, 81), unix.ECONNREFUSED},
			{"unreachable host", netip.MustParseAddrPort("192.0.2.1:80"), unix.EHOSTUNREACH},
			{"unreachable host, IPv6", netip.MustParseAddrPort("[2001:db8:1::1]:80"), unix.EHOSTUNREACH},
			{"no route", netip.MustParseAddrPort("198.51.100.1:80"), unix.ENETUNREACH},
			{"no route, IPv6", netip.MustParseAddrPort("[2001:db8:2::1]:80"), unix.ENETUNREACH},
			{"open port", netip.AddrPortFrom(server.IPv4, appPort), 0},
			{"open port, IPv6", netip.AddrPortFrom(server.IPv6, appPort), 0},
		} {
			for name, app := range map[string]*netnstest.App{"captured": captured, "plain": plain} {
				_, err := app.DialWith(way.to, options)
				if got := errnoOf(err); got != way.want || (err == nil) != (way.want == 0) {
					t.Errorf("%s, %s, %+v: %v, want %v", name, way.name, options, err, way.want)
				}
				if err != nil && !strings.HasPrefix(err.Error(), "connect: ") {
					t.Errorf("%s, %s: it was not connect(2) that failed: %v", name, way.name, err)
				}
			}
			n++
		}
	}
	if after := verdicts(t, a); after["hold_held"]-before["hold_held"] != n {
		t.Errorf("%d SYNs were held, want %d: %v", after["hold_held"]-before["hold_held"], n, after)
	}
}

// addDeadEnds makes some destinations unreachable from a namespace, by the kernel's own routing.
func addDeadEnds() error {
	for _, dead := range []struct {
		prefix string
		kind   int
	}{
		{"192.0.2.0/24", unix.RTN_UNREACHABLE}, {"2001:db8:1::/48", unix.RTN_UNREACHABLE},
		{"198.51.100.0/24", unix.RTN_THROW}, {"2001:db8:2::/48", unix.RTN_THROW},
	} {
		prefix := netip.MustParsePrefix(dead.prefix)
		dst := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: dead.kind}); err != nil {
			return fmt.Errorf("add route to %s: %w", prefix, err)
		}
	}
	return nil
}

func errnoOf(err error) (errno unix.Errno) {
	errors.As(err, &errno)
	return errno
}
