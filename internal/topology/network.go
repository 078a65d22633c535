package topology

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Network is some nodes on one wire. Node i (from 1) is 192.168.99.i and fd99::i; its pods are in 10.i.0.0/24 and
// fd00:i::/64, where the node is host 1.
type Network struct {
	wire  *NetNS
	nodes []*Node
}

// A Node routes between its pods and the wire.
type Node struct {
	*NetNS
	Name       string
	IPv4, IPv6 netip.Addr

	number int
	pods   []*Pod
}

// A Pod is a namespace with one interface, eth0, in the bridge of its node.
type Pod struct {
	*NetNS
	Name       string
	Node       *Node
	IPv4, IPv6 netip.Addr
	// Port is the name of the node's end of eth0, in the bridge.
	Port string
}

// New makes a network of nodes with these names.
func New(nodes ...string) (_ *Network, err error) {
	n := &Network{}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.wire, err = NewNetNS(); err != nil {
		return nil, err
	}
	if err := n.wire.Do(func() error { return addBridge("wire") }); err != nil {
		return nil, fmt.Errorf("make wire: %w", err)
	}
	for i, name := range nodes {
		if err := n.addNode(name, i+1); err != nil {
			return nil, fmt.Errorf("make node %s: %w", name, err)
		}
	}
	for _, node := range n.nodes {
		for _, other := range n.nodes {
			if node == other {
				continue
			}
			if err := node.Do(func() error { return routeTo(other) }); err != nil {
				return nil, err
			}
		}
	}
	return n, nil
}

// Close lets go of all namespaces of the network.
func (n *Network) Close() error {
	var errs []error
	for _, node := range n.nodes {
		for _, pod := range node.pods {
			errs = append(errs, pod.NetNS.Close())
		}
		errs = append(errs, node.NetNS.Close())
	}
	if n.wire != nil {
		errs = append(errs, n.wire.Close())
	}
	return errors.Join(errs...)
}

// Node returns the node of this name, nil if there is none.
func (n *Network) Node(name string) *Node {
	for _, node := range n.nodes {
		if node.Name == name {
			return node
		}
	}
	return nil
}

// Wire is the namespace of the bridge that joins the nodes: what they send to each other passes it.
func (n *Network) Wire() *NetNS { return n.wire }

func (n *Network) addNode(name string, number int) error {
	netns, err := NewNetNS()
	if err != nil {
		return err
	}
	node := &Node{
		NetNS:  netns,
		Name:   name,
		IPv4:   netip.AddrFrom4([4]byte{192, 168, 99, byte(number)}),
		IPv6:   netip.MustParseAddr(fmt.Sprintf("fd99::%d", number)),
		number: number,
	}
	n.nodes = append(n.nodes, node)
	err = node.Do(func() error {
		for _, sysctl := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+sysctl, []byte("1"), 0); err != nil {
				return err
			}
		}
		return addBridge("pods", netip.PrefixFrom(node.podIPv4(1), 24), netip.PrefixFrom(node.podIPv6(1), 64))
	})
	if err != nil {
		return err
	}
	return connect(node.NetNS, n.wire, "wire", fmt.Sprintf("node%d", number),
		netip.PrefixFrom(node.IPv4, 24), netip.PrefixFrom(node.IPv6, 64))
}

func (n *Node) podIPv4(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n.number), 0, byte(host)})
}

func (n *Node) podIPv6(host int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", n.number, host))
}

// PodRanges are the prefixes of the addresses of the node's pods.
func (n *Node) PodRanges() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(n.podIPv4(0), 24), netip.PrefixFrom(n.podIPv6(0), 64)}
}

// AddPod adds a pod to the node.
func (n *Node) AddPod(name string) (*Pod, error) {
	netns, err := NewNetNS()
	if err != nil {
		return nil, err
	}
	host := len(n.pods) + 2
	pod := &Pod{NetNS: netns, Name: name, Node: n, IPv4: n.podIPv4(host), IPv6: n.podIPv6(host), Port: fmt.Sprintf("pod%d", host)}
	n.pods = append(n.pods, pod)
	err = connect(pod.NetNS, n.NetNS, "pods", pod.Port,
		netip.PrefixFrom(pod.IPv4, 24), netip.PrefixFrom(pod.IPv6, 64))
	if err != nil {
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	err = pod.Do(func() error {
		for _, gateway := range []netip.Addr{n.podIPv4(1), n.podIPv6(1)} {
			if err := netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
				return fmt.Errorf("route by way of %s: %w", gateway, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	return pod, nil
}

// connect joins a namespace by its new interface eth0, with these addresses, to a bridge in another.
func connect(inner, outer *NetNS, bridge, port string, addrs ...netip.Prefix) error {
	err := outer.Do(func() error {
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: port},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(int(inner.file.Fd())),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, master); err != nil {
			return fmt.Errorf("join bridge: %w", err)
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	err = inner.Do(func() error { return errors.Join(setUp("eth0", addrs...), waitUp("eth0")) })
	if err != nil {
		return err
	}
	return outer.Do(func() error { return errors.Join(waitUp(port), waitUp(bridge)) })
}

// waitUp waits until a device carries packets and all its addresses can be used. The kernel notices a carrier up to a second
// late, and an address is tentative until a worker has looked at it, even if it does not look for duplicates.
func waitUp(device string) error {
	const limit, pause = 3 * time.Second, 2 * time.Millisecond
	for start := time.Now(); time.Since(start) < limit; time.Sleep(pause) {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		speaks := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		waits := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
		if speaks && !waits && link.Attrs().OperState == netlink.OperUp {
			return nil
		}
	}
	return fmt.Errorf("%s is not up", device)
}

// addBridge gives the bridge a hardware address of its own. Otherwise it has the lowest one of its ports, another one when a
// pod is added, and for those that know the old one it is gone for half a minute.
func addBridge(name string, addrs ...netip.Prefix) error {
	hardware := make(net.HardwareAddr, 6)
	rand.Read(hardware)
	hardware[0] = hardware[0]&^1 | 2 // of one station, locally administered
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hardware}}); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	return setUp(name, addrs...)
}

func setUp(name string, addrs ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func routeTo(node *Node) error {
	for _, r := range []struct {
		pods netip.Prefix
		via  netip.Addr
	}{
		{netip.PrefixFrom(node.podIPv4(0), 24), node.IPv4},
		{netip.PrefixFrom(node.podIPv6(0), 64), node.IPv6},
	} {
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(r.pods), Gw: r.via.AsSlice()}); err != nil {
			return fmt.Errorf("route to pods of node %s: %w", node.Name, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
