package netnstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A NetNS is a network namespace that lives as long as the test.
type NetNS struct {
	t    testing.TB
	file *os.File
}

// A Network is some nodes on one wire. Node i (from 1) is 192.168.99.i and fd99::i; its pods are in 10.i.0.0/24 and
// fd00:i::/64, where the node is host 1.
type Network struct {
	t     testing.TB
	wire  *NetNS
	nodes map[string]*Node
}

// A Node routes between its pods and the wire.
type Node struct {
	*NetNS
	Name       string
	IPv4, IPv6 netip.Addr

	number int
	pods   int
}

// A Pod is a namespace with one interface, eth0, in the bridge of its node.
type Pod struct {
	*NetNS
	Name       string
	Node       *Node
	IPv4, IPv6 netip.Addr

	port string // of the node's bridge
}

// New makes a network of nodes with these names.
func New(t testing.TB, nodes ...string) *Network {
	t.Helper()
	n := &Network{t: t, wire: NewNetNS(t), nodes: map[string]*Node{}}
	n.wire.must(func() error { return addBridge("wire") })
	for i, name := range nodes {
		n.nodes[name] = n.addNode(name, i+1)
	}
	for _, node := range n.nodes {
		for _, other := range n.nodes {
			if node != other {
				node.must(func() error { return routeTo(other) })
			}
		}
	}
	return n
}

// Node returns the node of this name.
func (n *Network) Node(name string) *Node { return n.nodes[name] }

func (n *Network) addNode(name string, number int) *Node {
	node := &Node{
		NetNS:  NewNetNS(n.t),
		Name:   name,
		IPv4:   netip.AddrFrom4([4]byte{192, 168, 99, byte(number)}),
		IPv6:   netip.MustParseAddr(fmt.Sprintf("fd99::%d", number)),
		number: number,
	}
	node.must(func() error {
		for _, sysctl := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+sysctl, []byte("1"), 0); err != nil {
				return err
			}
		}
		return addBridge("pods", netip.PrefixFrom(node.podIPv4(1), 24), netip.PrefixFrom(node.podIPv6(1), 64))
	})
	connect(node.NetNS, n.wire, "wire", fmt.Sprintf("node%d", number),
		netip.PrefixFrom(node.IPv4, 24), netip.PrefixFrom(node.IPv6, 64))
	return node
}

func (n *Node) podIPv4(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n.number), 0, byte(host)})
}

func (n *Node) podIPv6(host int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", n.number, host))
}

// Pod adds a pod to the node.
func (n *Node) Pod(name string) *Pod {
	n.t.Helper()
	n.pods++
	host := n.pods + 1
	pod := &Pod{NetNS: NewNetNS(n.t), Name: name, Node: n, IPv4: n.podIPv4(host), IPv6: n.podIPv6(host), port: fmt.Sprintf("pod%d", host)}
	connect(pod.NetNS, n.NetNS, "pods", pod.port,
		netip.PrefixFrom(pod.IPv4, 24), netip.PrefixFrom(pod.IPv6, 64))
	pod.must(func() error {
		for _, gateway := range []netip.Addr{n.podIPv4(1), n.podIPv6(1)} {
			if err := netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
				return fmt.Errorf("route by way of %s: %w", gateway, err)
			}
		}
		return nil
	})
	return pod
}

// NewNetNS makes a network namespace whose loopback is up.
func NewNetNS(t testing.TB) *NetNS {
	t.Helper()
	made := make(chan error, 1)
	n := &NetNS{t: t}
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { n.file.Close() })
	n.must(func() error {
		// Addresses, the link-local ones included, are usable at once, not after a second of looking for duplicates.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// Close lets go of the namespace before the test ends. It is gone with its last process and socket.
func (n *NetNS) Close() error { return n.file.Close() }

// Path is where the namespace can be opened, by other processes too.
func (n *NetNS) Path() string {
	return filepath.Join("/proc", fmt.Sprint(os.Getpid()), "fd", fmt.Sprint(n.file.Fd()))
}

// Do runs f on a thread that is in the namespace.
func (n *NetNS) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (n *NetNS) must(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatalf("set up network namespace: %v", err)
	}
}

// connect joins a namespace by its new interface eth0, with these addresses, to a bridge in another.
func connect(inner, outer *NetNS, bridge, port string, addrs ...netip.Prefix) {
	inner.t.Helper()
	outer.must(func() error {
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
	inner.must(func() error { return setUp("eth0", addrs...) })
	inner.must(func() error { return waitUp("eth0") })
	outer.must(func() error { return errors.Join(waitUp(port), waitUp(bridge)) })
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

func addBridge(name string, addrs ...netip.Prefix) error {
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
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
