package translate

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
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
		TrustDomain:   in.Config.TrustDomain,
		ClusterId:     in.Config.ClusterID,
		PodRanges:     o.podRanges(in.Nodes, in.Config.PodRanges),
		ServiceRanges: o.serviceRanges(in.ServiceCIDRs, in.Config.ServiceRanges),
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

// podRanges are the CIDRs of all nodes and the configured ones.
func (o *output) podRanges(nodes []*corev1.Node, configured []string) []string {
	found := ranges{kind: "pod"}
	found.add("the configuration", configured...)
	for _, n := range nodes {
		cidrs := n.Spec.PodCIDRs
		if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
			cidrs = []string{n.Spec.PodCIDR}
		}
		found.add("node "+n.Name, cidrs...)
	}
	return o.ranges(found)
}

// serviceRanges are those of the cluster and the configured ones.
func (o *output) serviceRanges(cidrs []*networkingv1.ServiceCIDR, configured []string) []string {
	found := ranges{kind: "service"}
	found.add("the configuration", configured...)
	for _, c := range cidrs {
		found.add("ServiceCIDR "+c.Name, c.Spec.CIDRs...)
	}
	return o.ranges(found)
}

// ranges are CIDRs of addresses of a kind.
type ranges struct {
	kind     string
	prefixes []netip.Prefix
	problems []error
}

func (r *ranges) add(of string, cidrs ...string) {
	for _, cidr := range cidrs {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			r.problems = append(r.problems, fmt.Errorf("%s range of %s: %w", r.kind, of, err))
			continue
		}
		r.prefixes = append(r.prefixes, prefix.Masked())
	}
}

// ranges are those that could be read, each once, in order.
func (o *output) ranges(found ranges) (texts []string) {
	o.problems = append(o.problems, found.problems...)
	slices.SortFunc(found.prefixes, netip.Prefix.Compare)
	for _, prefix := range slices.Compact(found.prefixes) {
		texts = append(texts, prefix.String())
	}
	return texts
}
