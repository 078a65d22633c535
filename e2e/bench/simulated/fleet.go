package simulated

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"k8s.io/apimachinery/pkg/runtime"
)

// The fleet is as clusters are: teams have namespaces of 20 deployments, each
// with a Service and a service account of its own; a node has 100 pods.
const (
	defaultPodsPerService = 50
	servicesPerNamespace  = 20
	podsPerFleetNode      = 100
)

// applications are what deployments are named after.
var applications = [...]string{
	"checkout", "cart", "catalog", "payments", "ledger", "search", "recommendations", "inventory", "shipping", "accounts",
	"sessions", "notifications", "pricing", "promotions", "reviews", "media", "reporting", "fraud-detection", "tax", "gateway",
}

// fleet returns the objects of the workloads that exist in Kubernetes alone: to
// ztunnels they are plain workloads, in no mesh, that any pod may talk to.
func (m *Mesh) fleet() (objects []runtime.Object) {
	perService := m.config.PodsPerService
	if perService == 0 {
		perService = defaultPodsPerService
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same names every time
	for i := 0; i*podsPerFleetNode < m.config.Workloads; i++ {
		objects = append(objects, nodeObject(fleetNode(i), []netip.Prefix{netip.PrefixFrom(fleetAddress(i, 0), 24)}))
	}
	for first := 0; first < m.config.Workloads; first += perService {
		number := first / perService
		s := service{
			namespace: fmt.Sprintf("team-%03d", number/servicesPerNamespace), name: applications[number%len(applications)],
			address: FleetService(number).Addr(), port: FleetService(number).Port(), targetPort: 8080,
		}
		if number%servicesPerNamespace == 0 {
			objects = append(objects, namespaceObject(s.namespace))
		}
		hash := suffix(random, 10)
		for i := first; i < min(first+perService, m.config.Workloads); i++ {
			spec := podSpec{
				namespace: s.namespace, name: s.name + "-" + hash + "-" + suffix(random, 5), account: s.name,
				node: fleetNode(i / podsPerFleetNode), replicaSet: s.name + "-" + hash,
				ips:    []netip.Addr{fleetAddress(i/podsPerFleetNode, i%podsPerFleetNode+2)},
				labels: map[string]string{"app": s.name, "pod-template-hash": hash},
			}
			s.pods = append(s.pods, spec)
			objects = append(objects, podObject(spec))
		}
		objects = append(objects, serviceObjects(s)...)
	}
	return objects
}

// FleetService is the address of a Service of the fleet, from 0.
func FleetService(number int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 97, byte(number >> 8), byte(number)}), 80)
}

func fleetNode(i int) string { return fmt.Sprintf("worker-%04d", i) }

// fleetAddress is host h of a node: 10.128.0.0/9 has room for 32,768 nodes.
func fleetAddress(node, h int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(128 + node>>8), byte(node), byte(h)})
}

// suffix is what Kubernetes makes names unique by.
func suffix(random *rand.Rand, n int) string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	text := make([]byte, n)
	for i := range text {
		text[i] = letters[random.IntN(len(letters))]
	}
	return string(text)
}
