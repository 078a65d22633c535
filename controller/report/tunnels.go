package report

import (
	corev1 "k8s.io/api/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/ambit-mesh/ambit/controller/ca"
)

// KubernetesTunnels knows from Kubernetes where ztunnel runs.
type KubernetesTunnels struct {
	pods            *ca.Pods
	nodes           corelisters.NodeLister
	systemNamespace string
}

// NewTunnels returns what says where ztunnel runs.
func NewTunnels(pods *ca.Pods, nodes corelisters.NodeLister, systemNamespace string) *KubernetesTunnels {
	return &KubernetesTunnels{pods: pods, nodes: nodes, systemNamespace: systemNamespace}
}

// Exists says whether a node is there at all.
func (t *KubernetesTunnels) Exists(name string) bool {
	_, err := t.nodes.Get(name)
	return err == nil
}

// MayRun says whether a ztunnel may be carrying connections on a node: the node
// is Ready, and a pod of ztunnel's is bound to it, however broken. A node that
// is not Ready lost its network or its power; where ztunnel was removed, nobody
// acts on old configuration.
func (t *KubernetesTunnels) MayRun(name string) bool {
	node, err := t.nodes.Get(name)
	if err != nil || !ready(node) {
		return false
	}
	for _, pod := range t.pods.PodsOnNode(name) {
		if pod.Namespace == t.systemNamespace && pod.Spec.ServiceAccountName == ca.TunnelServiceAccount &&
			pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			return true
		}
	}
	return false
}

func ready(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
