package ca

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// byNode is the name of the index of pods by the node they run on.
const byNode = "ambit-node"

// Pods knows the cluster's pods.
type Pods struct {
	indexer cache.Indexer
}

// NewPods reads from an informer and adds an index to it; call it before the
// informer starts.
func NewPods(informer coreinformers.PodInformer) (*Pods, error) {
	err := informer.Informer().AddIndexers(cache.Indexers{byNode: func(object any) ([]string, error) {
		pod, ok := object.(*corev1.Pod)
		if !ok || pod.Spec.NodeName == "" {
			return nil, nil
		}
		return []string{pod.Spec.NodeName}, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("index pods by node: %w", err)
	}
	return &Pods{indexer: informer.Informer().GetIndexer()}, nil
}

// Pod returns a pod by name.
func (p *Pods) Pod(namespace, name string) (*corev1.Pod, bool) {
	object, found, err := p.indexer.GetByKey(namespace + "/" + name)
	if err != nil || !found {
		return nil, false
	}
	pod, ok := object.(*corev1.Pod)
	return pod, ok
}

// NodeOf returns the node of the pod that has this name and UID.
func (p *Pods) NodeOf(name types.NamespacedName, uid types.UID) (node string, found bool) {
	pod, found := p.Pod(name.Namespace, name.Name)
	if !found || pod.UID != uid {
		return "", false
	}
	return pod.Spec.NodeName, true
}

// PodsOnNode returns the pods that are bound to a node, terminal ones included.
func (p *Pods) PodsOnNode(node string) []*corev1.Pod {
	objects, err := p.indexer.ByIndex(byNode, node)
	if err != nil {
		return nil
	}
	pods := make([]*corev1.Pod, 0, len(objects))
	for _, object := range objects {
		if pod, ok := object.(*corev1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	return pods
}

// NodesWith returns the nodes on which pods of a service account run, each once,
// in order.
func (p *Pods) NodesWith(namespace, account string) (nodes []string) {
	for _, object := range p.indexer.List() {
		pod, ok := object.(*corev1.Pod)
		if ok && pod.Namespace == namespace && pod.Spec.ServiceAccountName == account && pod.Spec.NodeName != "" && !terminal(pod) {
			nodes = append(nodes, pod.Spec.NodeName)
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}
