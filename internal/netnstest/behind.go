package netnstest

import (
	"net"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/internal/topology"
)

// Behind makes a namespace behind the pod, which forwards what comes from it under an address of its own network's: what an
// application with CAP_NET_ADMIN can build. It lives as long as the test.
func Behind(pod *Pod) *NetNS {
	pod.t.Helper()
	inner, err := topology.NewNetNS()
	if err != nil {
		pod.t.Fatal(err)
	}
	pod.t.Cleanup(func() { inner.Close() })
	n := &NetNS{NetNS: inner, t: pod.t}
	outer := &net.IPNet{IP: net.IPv4(10, 99, 0, 1), Mask: net.CIDRMask(24, 32)}
	own := &net.IPNet{IP: net.IPv4(10, 99, 0, 2), Mask: net.CIDRMask(24, 32)}
	file, err := os.Open(inner.Path())
	if err != nil {
		pod.t.Fatal(err)
	}
	defer file.Close()
	pod.must(func() error {
		if old, err := netlink.LinkByName("inner"); err == nil {
			if err := netlink.LinkDel(old); err != nil {
				return err
			}
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "inner"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(file.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := netlink.AddrAdd(veth, &netlink.Addr{IPNet: outer}); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(veth); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
	n.must(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(eth0, &netlink.Addr{IPNet: own}); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(eth0); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: outer.IP})
	})
	return n
}
