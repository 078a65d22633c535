package main

import (
	"fmt"
	"net"
	"net/netip"
)

// The address plan. All of it exists only inside the lab's namespaces.
const (
	clusterCIDR4 = "10.244.0.0/16"
	clusterCIDR6 = "fd00:10:244::/48"
	serviceCIDRs = "10.96.0.0/16,fd00:10:96::/112"

	// The first address of the first service range is always the API's.
	apiService4, apiService6 = "10.96.0.1", "fd00:10:96::1"
	dnsService4, dnsService6 = "10.96.0.10", "fd00:10:96::a"

	// The switch is also the machines' router. Behind it lies nothing but two
	// addresses of its own, which stand for the world outside the cluster.
	gateway4, gateway6 = "172.30.0.254", "fd00:172:30::fe"
	outside4, outside6 = "203.0.113.1", "2001:db8::1"

	apiPort = 6443
)

const controlPlane = "cp"

// nodeNames are the machines that run pods.
var nodeNames = []string{"n1", "n2", "n3"}

// machine is one computer of the lab.
type machine struct {
	name  string
	index int // 0 is the control plane
}

func machines() []machine {
	all := []machine{{name: controlPlane}}
	for i, name := range nodeNames {
		all = append(all, machine{name: name, index: i + 1})
	}
	return all
}

func nodes() []machine { return machines()[1:] }

func findMachine(name string) (machine, error) {
	for _, m := range machines() {
		if m.name == name {
			return m, nil
		}
	}
	return machine{}, fmt.Errorf("no machine %q: want cp, n1, n2 or n3", name)
}

func (m machine) isNode() bool { return m.index > 0 }

// host is the last number of the machine's addresses: 1 for the control
// plane, 11, 12, 13 for the nodes.
func (m machine) host() int {
	if m.isNode() {
		return 10 + m.index
	}
	return 1
}

func (m machine) address4() netip.Addr {
	return netip.AddrFrom4([4]byte{172, 30, 0, byte(m.host())})
}

// address6 writes the host's number in decimal digits, so that both families
// look alike: 172.30.0.12 and fd00:172:30::12.
func (m machine) address6() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:172:30::%d", m.host()))
}

// hardwareAddress stays the same over a power cut, as a real one does: with
// another, the neighbours would talk to the old one for half a minute.
func (m machine) hardwareAddress() net.HardwareAddr {
	const locallyAdministered = 0x02
	return append(net.HardwareAddr{locallyAdministered, 0}, m.address4().AsSlice()...)
}

// podCIDR4 has room for the 150 pods that a node may run.
func (m machine) podCIDR4() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(m.index), 0}), 24)
}

func (m machine) podCIDR6() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", m.index))
}

// zone puts the last node alone, so that there is a zone with two nodes and
// one with a single node.
func (m machine) zone() string {
	if m.index == len(nodeNames) {
		return "lab-b"
	}
	return "lab-a"
}

func apiServer() string {
	control := machines()[0]
	return fmt.Sprintf("https://%s", netip.AddrPortFrom(control.address4(), apiPort))
}
