package netnstest

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// A NetNS is a network namespace that lives as long as the test.
type NetNS struct {
	*netns.NetNS
	t testing.TB
}

// A Network is some nodes on one wire. Node i (from 1) is 192.168.99.i and fd99::i; its pods are in 10.i.0.0/24 and
// fd00:i::/64, where the node is host 1.
type Network struct {
	nodes map[string]*Node
}

// A Node routes between its pods and the wire.
type Node struct {
	*NetNS
	Name       string
	IPv4, IPv6 netip.Addr

	node *netns.Node
}

// A Pod is a namespace with one interface, eth0, in the bridge of its node.
type Pod struct {
	*NetNS
	Name       string
	Node       *Node
	IPv4, IPv6 netip.Addr
}

// New makes a network of nodes with these names.
func New(t testing.TB, nodes ...string) *Network {
	t.Helper()
	network, err := netns.NewNetwork(nodes...)
	if err != nil {
		t.Fatal(err)
	}
	// Errors do not count: the test may have closed some itself.
	t.Cleanup(func() { network.Close() })
	n := &Network{nodes: map[string]*Node{}}
	for _, name := range nodes {
		node := network.Node(name)
		n.nodes[name] = &Node{NetNS: &NetNS{node.NetNS, t}, Name: name, IPv4: node.IPv4, IPv6: node.IPv6, node: node}
	}
	return n
}

// Node returns the node of this name.
func (n *Network) Node(name string) *Node { return n.nodes[name] }

// Pod adds a pod to the node.
func (n *Node) Pod(name string) *Pod {
	n.t.Helper()
	pod, err := n.node.AddPod(name)
	if err != nil {
		n.t.Fatal(err)
	}
	return &Pod{NetNS: &NetNS{pod.NetNS, n.t}, Name: name, Node: n, IPv4: pod.IPv4, IPv6: pod.IPv6}
}

// NewNetNS makes a network namespace whose loopback is up.
func NewNetNS(t testing.TB) *NetNS {
	t.Helper()
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return &NetNS{n, t}
}
