package check

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
)

const portHBONE = 15008

// askNetworkPolicies finds policies that would let the application's port in,
// and not the port that its traffic comes by once it is in the mesh.
func askNetworkPolicies(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	enrolled, err := enrolledNamespaces(ctx, cluster)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for namespace := range enrolled {
		policies, err := cluster.Typed.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for i := range policies.Items {
			if policy := &policies.Items[i]; forgetsTunnel(policy) {
				findings = append(findings, Finding{
					Level: Error, Object: "NetworkPolicy " + namespace + "/" + policy.Name,
					Reason: "spec.ingress admits application ports but not TCP 15008, by which mesh traffic comes: it would be dropped",
					Next:   "add TCP 15008 to the ports of the rules that admit pods of the mesh",
				})
			}
		}
	}
	return findings, nil
}

// forgetsTunnel tells whether a policy admits some port by ingress, and never
// the tunnel's. One that admits nothing means it.
func forgetsTunnel(policy *networkingv1.NetworkPolicy) bool {
	if !restrictsIngress(policy) || len(policy.Spec.Ingress) == 0 {
		return false
	}
	for _, rule := range policy.Spec.Ingress {
		if len(rule.Ports) == 0 {
			return false
		}
		for _, port := range rule.Ports {
			if admitsTunnel(port) {
				return false
			}
		}
	}
	return true
}

func restrictsIngress(policy *networkingv1.NetworkPolicy) bool {
	if len(policy.Spec.PolicyTypes) == 0 {
		return true // the default: ingress always, egress if it has rules
	}
	for _, kind := range policy.Spec.PolicyTypes {
		if kind == networkingv1.PolicyTypeIngress {
			return true
		}
	}
	return false
}

func admitsTunnel(port networkingv1.NetworkPolicyPort) bool {
	if port.Protocol != nil && *port.Protocol != corev1.ProtocolTCP {
		return false
	}
	if port.Port == nil {
		return true
	}
	first := int(port.Port.IntValue()) // a named port is 0 here: no application names ours
	if port.EndPort != nil {
		return first <= portHBONE && portHBONE <= int(*port.EndPort)
	}
	return first == portHBONE
}
