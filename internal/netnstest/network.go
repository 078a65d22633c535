package netnstest

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/topology"
)

// A NetNS is a network namespace that lives as long as the test.
type NetNS struct {
	*topology.NetNS
	t testing.TB
}

// A Network is some nodes on one wire, with the addresses of a [topology.Network].
type Network struct {
	t     testing.TB
	nodes map[string]*Node
}

// A Node routes between its pods and the wire.
type Node struct {
	*NetNS
	Name       string
	IPv4, IPv6 netip.Addr

	node *topology.Node
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
	network, err := topology.New(nodes...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	n := &Network{t: t, nodes: map[string]*Node{}}
	for _, name := range nodes {
		node := network.Node(name)
		n.nodes[name] = &Node{NetNS: &NetNS{NetNS: node.NetNS, t: t}, Name: name, IPv4: node.IPv4, IPv6: node.IPv6, node: node}
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
	return &Pod{NetNS: &NetNS{NetNS: pod.NetNS, t: n.t}, Name: name, Node: n, IPv4: pod.IPv4, IPv6: pod.IPv6, port: pod.Port}
}

// must runs f in the namespace; its error ends the test.
func (n *NetNS) must(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatal(err)
	}
}

// NewNetNS makes a network namespace whose loopback is up.
func NewNetNS(t testing.TB) *NetNS {
	t.Helper()
	netns, err := topology.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Close() })
	return &NetNS{NetNS: netns, t: t}
}
