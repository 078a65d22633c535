package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

const (
	// rulePriority and routeTable are those of the rule and the routes in each pod: after the rule for local addresses (0),
	// before those for everything else (32766).
	rulePriority = 100
	routeTable   = 100
	// An IPv6 address cannot be a source before the namespace has made sure that no one else has it: 1 s by default.
	tentativeLimit = 3 * time.Second
	tentativePause = 50 * time.Millisecond
)

// routeMarked makes a namespace send what bears the mark to its own lo, and take it there from any sender.
func routeMarked(ctx context.Context, ns *podns.NetNS, procfs string, ips []netip.Addr, dns bool) error {
	ctx, cancel := context.WithTimeout(ctx, tentativeLimit)
	defer cancel()
	for _, ip := range ips {
		if err := ns.Do(func() error { return addRule(ip) }); err != nil {
			return fmt.Errorf("add rule for the mark: %w", err)
		}
		for {
			err := ns.Do(func() error { return addRoute(ip) })
			if err == nil {
				break
			}
			if !ip.Is6() || !errors.Is(err, unix.EINVAL) || ctx.Err() != nil {
				return fmt.Errorf("add local route with source %s: %w", ip, err)
			}
			pause(ctx, tentativePause)
		}
		if err := ns.Do(func() error { return writeSysctls(procfs, ip, dns) }); err != nil {
			return err
		}
	}
	return nil
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func addRule(ip netip.Addr) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	whole := ^uint32(0)
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = family(ip), rulePriority, routeTable
	rule.Mark, rule.Mask = uint32(bpf.Mark), &whole
	if err := handle.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// addRoute gives the source, for without it the kernel would take the destination's address for a connection to it.
func addRoute(ip netip.Addr) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return err
	}
	return handle.RouteReplace(&netlink.Route{
		LinkIndex: lo.Attrs().Index,
		Dst:       &net.IPNet{IP: make(net.IP, ip.BitLen()/8), Mask: net.CIDRMask(0, ip.BitLen())},
		Table:     routeTable,
		Type:      unix.RTN_LOCAL,
		Scope:     unix.RT_SCOPE_HOST,
		Src:       ip.AsSlice(),
	})
}

// writeSysctls makes answers take the way of what they answer: accepted sockets bear the mark of the SYN, and resets that
// of the segment they reject. With dns, lo takes in what the pod itself sent by another interface. procfs shows, below sys/net,
// the namespace of the thread that looks.
func writeSysctls(procfs string, ip netip.Addr, dns bool) error {
	names := []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect"}
	if ip.Is6() {
		names = []string{"ipv4/tcp_fwmark_accept", "ipv6/fwmark_reflect"} // the first is for both
	} else if dns {
		names = append(names, "ipv4/conf/lo/accept_local") // IPv6 asks for nothing of the kind
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(procfs, "sys/net", name), []byte("1"), 0); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}
