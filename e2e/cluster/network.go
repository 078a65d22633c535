package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// switchName is the namespace in which all cables meet.
const switchName = "switch"

// bridgeName is the switch's own link, into which all cables go.
const bridgeName = "br0"

// ensureSwitch makes the switch, which is also the machines' router.
func ensureSwitch(l layout) error {
	if err := createNetns(l.netns(switchName)); err != nil {
		return err
	}
	return inNetns(l.netns(switchName), func() error {
		if err := forwardPackets(); err != nil {
			return err
		}
		bridge := &netlink.Bridge{LinkAttrs: named(bridgeName)}
		if err := ensureLink(bridge, gateway4+"/24", gateway6+"/64"); err != nil {
			return err
		}
		// The world outside is one host, the switch itself.
		loopback, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := addAddresses(loopback, outside4+"/32", outside6+"/128"); err != nil {
			return err
		}
		if err := setUp("lo"); err != nil {
			return err
		}
		return routeToPods(machine{})
	})
}

// plugIn gives a machine its network namespace with a cable to the switch.
func plugIn(l layout, m machine) error {
	if err := createNetns(l.netns(m.name)); err != nil {
		return err
	}
	target, err := os.Open(netnsPath(l.netns(m.name)))
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	err = inNetns(l.netns(switchName), func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find bridge: %w", err)
		}
		port := &netlink.Veth{
			LinkAttrs: named(m.name), PeerName: "eth0", PeerNamespace: netlink.NsFd(int(target.Fd())), PeerHardwareAddr: m.hardwareAddress(),
		}
		port.MasterIndex = bridge.Attrs().Index
		if err := netlink.LinkAdd(port); err != nil {
			return fmt.Errorf("lay cable to %s: %w", m.name, err)
		}
		return setUp(m.name)
	})
	if err != nil {
		return err
	}
	return inNetns(l.netns(m.name), func() error { return configureMachine(m) })
}

// configureMachine runs in the machine's namespace.
func configureMachine(m machine) error {
	if err := forwardPackets(); err != nil {
		return err
	}
	if err := setUp("lo"); err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := addAddresses(link, m.address4().String()+"/24", m.address6().String()+"/64"); err != nil {
		return err
	}
	if err := setUp("eth0"); err != nil {
		return err
	}
	for _, gateway := range []string{gateway4, gateway6} {
		if err := addRoute(netip.Prefix{}, netip.MustParseAddr(gateway)); err != nil {
			return err
		}
	}
	return routeToPods(m)
}

// routeToPods sends the pods of every other machine there directly.
func routeToPods(self machine) error {
	for _, n := range nodes() {
		if n.name == self.name {
			continue
		}
		if err := addRoute(n.podCIDR4(), n.address4()); err != nil {
			return err
		}
		if err := addRoute(n.podCIDR6(), n.address6()); err != nil {
			return err
		}
	}
	return nil
}

// pullPlug cuts a machine off: from here on it says nothing to anybody, not
// even that its connections are closed.
func pullPlug(l layout, m machine) error {
	return atSwitch(l, m, func(port netlink.Link) error { return netlink.LinkSetDown(port) })
}

// unplug removes the cable. It would go with the machine's namespace, but
// sockets that the kernel still closes can keep that alive for a while.
func unplug(l layout, m machine) error {
	return atSwitch(l, m, netlink.LinkDel)
}

// atSwitch works on the machine's port, if there is one.
func atSwitch(l layout, m machine, f func(port netlink.Link) error) error {
	if !netnsExists(l.netns(switchName)) {
		return nil
	}
	return inNetns(l.netns(switchName), func() error {
		port, err := netlink.LinkByName(m.name)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		if err == nil {
			err = f(port)
		}
		if err != nil {
			return fmt.Errorf("change port of %s: %w", m.name, err)
		}
		return nil
	})
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

// ensureLink makes a link with its addresses, unless it exists.
func ensureLink(link netlink.Link, cidrs ...string) error {
	name := link.Attrs().Name
	if err := netlink.LinkAdd(link); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("add link %s: %w", name, err)
	}
	existing, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := addAddresses(existing, cidrs...); err != nil {
		return err
	}
	return setUp(name)
}

func addAddresses(link netlink.Link, cidrs ...string) error {
	for _, cidr := range cidrs {
		ip, network, err := net.ParseCIDR(cidr)
		if err != nil {
			return fmt.Errorf("parse address: %w", err)
		}
		network.IP = ip
		// Nobody else can have the address: duplicate detection would only
		// keep it unusable for a second.
		address := &netlink.Addr{IPNet: network, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrReplace(link, address); err != nil {
			return fmt.Errorf("add address %s: %w", cidr, err)
		}
	}
	return nil
}

// addRoute routes a prefix, or everything if it is the zero Prefix.
func addRoute(to netip.Prefix, via netip.Addr) error {
	route := &netlink.Route{Gw: via.AsSlice()}
	if to.IsValid() {
		route.Dst = &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s via %s: %w", to, via, err)
	}
	return nil
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// forwardPackets makes a router of the current network namespace.
func forwardPackets() error {
	for key, value := range map[string]string{
		"ipv4/ip_forward":             "1",
		"ipv4/conf/all/rp_filter":     "0",
		"ipv4/conf/default/rp_filter": "0",
		"ipv6/conf/all/forwarding":    "1",
		// For the links that CNI adds: see addAddresses.
		"ipv6/conf/default/accept_dad": "0",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}
