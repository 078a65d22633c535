package translate

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// configName of the one resource that describes the mesh.
const configName = "mesh"

// output collects resources, and what could not be made one.
type output struct {
	trustDomain string
	resources   resource.Resources
	outcomes    []*Policy
	bound       []*Bound
	through     map[types.UID][]string
	problems    []error
}

func (o *output) add(name string, message proto.Message, relations resource.Relations) {
	r, err := resource.New(name, message, relations)
	if err != nil {
		o.problems = append(o.problems, fmt.Errorf("translate %s: %w", name, err))
		return
	}
	o.resources.Add(r)
}

func (o *output) workload(w *workload.Workload) {
	address := &workload.Address{Type: &workload.Address_Workload{Workload: w}}
	o.add(w.Uid, address, workloadRelations(w))
}

func (o *output) service(s *service) {
	address := &workload.Address{Type: &workload.Address_Service{Service: s.message}}
	o.add(s.key, address, resource.Relations{Aliases: s.aliases()})
}

// mesh adds what concerns the mesh as a whole.
func (o *output) mesh(in Input) {
	o.add(configName, &mesh.Config{
		TrustDomain: in.Config.TrustDomain,
		ClusterId:   in.Config.ClusterID,
		PodRanges:   o.podRanges(in.Nodes, in.Config.PodRanges),
	}, resource.Relations{})
	if len(in.Roots) > 0 {
		o.add(in.Config.TrustDomain, &mesh.TrustBundle{
			TrustDomain: in.Config.TrustDomain,
			Roots:       in.Roots,
			Retiring:    in.Retiring,
		}, resource.Relations{})
	}
	if in.Revoked != nil {
		o.add(in.Config.TrustDomain, in.Revoked, resource.Relations{})
	}
}

// podRanges are the CIDRs of all nodes and the configured ones, each once, in order.
func (o *output) podRanges(nodes []*corev1.Node, configured []string) []string {
	var prefixes []netip.Prefix
	parse := func(of, cidr string) {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			o.problems = append(o.problems, fmt.Errorf("pod range of %s: %w", of, err))
			return
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	for _, cidr := range configured {
		parse("the configuration", cidr)
	}
	for _, n := range nodes {
		cidrs := n.Spec.PodCIDRs
		if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
			cidrs = []string{n.Spec.PodCIDR}
		}
		for _, cidr := range cidrs {
			parse("node "+n.Name, cidr)
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	var ranges []string
	for _, prefix := range slices.Compact(prefixes) {
		ranges = append(ranges, prefix.String())
	}
	return ranges
}
