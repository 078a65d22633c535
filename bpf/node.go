package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// A Class is why a network namespace that is not captured may connect.
type Class uint32

const (
	// Ztunnel is the namespace of ztunnel's own process.
	Ztunnel = Class(connectClassCLASS_ZTUNNEL)
	// NotEnrolled is that of a pod that is known, and not to be captured.
	NotEnrolled = Class(connectClassCLASS_NOT_ENROLLED)
)

// MaxKubelets is how many cgroups of kubelets a node can have.
const MaxKubelets = int(connectNumberMAX_KUBELETS)

// The names of the node's programs.
const (
	Connect4Name = connectProgConnectConnect4
	Connect6Name = connectProgConnectConnect6
	PermitName   = permitProgPermitSockops
)

// claim writes whose the maps are.
func (n *Node) claim(host Host) error {
	return n.changeNode(func(now *connectNode) { now.Host, now.Layout = host.Cookie, host.Layout })
}

func (n *Node) changeNode(change func(*connectNode)) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	now, err := readNode(n.maps[connectMapMeshNode])
	if err != nil {
		return err
	}
	before := now
	if change(&now); now == before {
		return nil
	}
	if err := n.maps[connectMapMeshNode].Put(uint32(0), now); err != nil {
		return fmt.Errorf("change what holds for the node: %w", err)
	}
	return nil
}

func readNode(m *ebpf.Map) (now connectNode, err error) {
	if err := m.Lookup(uint32(0), &now); err != nil {
		return now, fmt.Errorf("read what holds for the node: %w", err)
	}
	return now, nil
}

// SetKubelets says in which cgroups, by their ids, the kubelet is: what it connects to passes the pods' listeners. Of more than
// MaxKubelets the first count.
func (n *Node) SetKubelets(cgroups []uint64) error {
	return n.changeNode(func(now *connectNode) {
		now.Kubelets = [connectNumberMAX_KUBELETS]uint64{}
		copy(now.Kubelets[:], cgroups)
	})
}

// Kubelets returns what SetKubelets said last, in whatever process.
func (n *Node) Kubelets() (cgroups []uint64, err error) {
	now, err := readNode(n.maps[connectMapMeshNode])
	for _, id := range now.Kubelets {
		if id != 0 {
			cgroups = append(cgroups, id)
		}
	}
	return cgroups, err
}

// RefuseUnclassified says whether connect(2) for TCP fails in a pod whose namespace is neither captured nor classified.
func (n *Node) RefuseUnclassified(refuse bool) error {
	const flag = uint32(connectNodeFlagNODE_REFUSES_UNCLASSIFIED)
	return n.changeNode(func(now *connectNode) {
		now.Flags &^= flag
		if refuse {
			now.Flags |= flag
		}
	})
}

// RefusesUnclassified tells what RefuseUnclassified said last, in whatever process.
func (n *Node) RefusesUnclassified() (bool, error) {
	now, err := readNode(n.maps[connectMapMeshNode])
	return now.Flags&uint32(connectNodeFlagNODE_REFUSES_UNCLASSIFIED) != 0, err
}

// Classify lets the namespace of this cookie connect though it is not captured.
func (n *Node) Classify(cookie uint64, class Class) error {
	return n.maps[connectMapMeshClasses].Put(cookie, class)
}

// Declassify ends what Classify began. To declassify what is not classified is no error.
func (n *Node) Declassify(cookie uint64) error {
	return ignoreMissing(n.maps[connectMapMeshClasses].Delete(cookie))
}

// Classes returns what is classified.
func (n *Node) Classes() (map[uint64]Class, error) {
	classes := map[uint64]Class{}
	var cookie uint64
	var class Class
	entries := n.maps[connectMapMeshClasses].Iterate()
	for entries.Next(&cookie, &class) {
		classes[cookie] = class
	}
	return classes, entries.Err()
}
