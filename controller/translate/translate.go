// Package translate turns Kubernetes objects into the mesh model that data
// planes read. It is a pure function: the same objects, in whatever order, give
// the same resources.
//
//	pods.go       which pods are published, and which of them has an address
//	workload.go   pod -> workload
//	owner.go      pod -> the names that people know it by
//	service.go    Service -> service, and which of them has a virtual address
//	endpoints.go  EndpointSlices -> who serves which port of which service now
//	config.go     what concerns the mesh as a whole
//
// Traffic that is captured no longer passes kube-proxy, so a Service has to mean
// here what it means there: endpoints are those, and only those, that kube-proxy
// would use.
//
// Invariants: an address stands for one workload or one service; a pod is
// reached through a tunnel if and only if it is in Input.Captured and has an
// address of its own; an object that cannot be expressed is reported and left
// out, and takes no other with it.
//
// Deciding who is captured is report's job, sending the result push's.
package translate

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/resource"
)

// Input is everything that the result depends on. The objects are only read.
type Input struct {
	Pods     []*corev1.Pod
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
	Nodes    []*corev1.Node

	// Captured pods are those to be reached through tunnels.
	Captured Captured
	// Roots of the mesh's certificates, PEM, one each.
	Roots []string

	Config Config
}

// Captured is the set of pods that are captured at one moment.
type Captured interface {
	Has(uid types.UID) bool
}

// Config of the mesh.
type Config struct {
	// TrustDomain of identities, such as cluster.local.
	TrustDomain string
	// ClusterID is the first part of workload names, such as Kubernetes.
	ClusterID string
	// ClusterDomain ends Services' host names, such as cluster.local.
	ClusterDomain string
	// PodRanges are CIDRs of pods besides those of Nodes' spec.podCIDRs, for
	// networks that assign addresses their own way.
	PodRanges []string
}

// Translate returns the mesh model. The error joins what could not be expressed
// and is missing from the result, which is good to be published all the same.
func Translate(in Input) (resource.Resources, error) {
	out := &output{resources: make(resource.Resources)}
	nodes := indexNodes(in.Nodes)
	pods := indexPods(in.Pods)
	services := indexServices(in.Services, pods, in.Config)
	serving := resolveEndpoints(in.Slices, services, pods)

	for _, p := range pods.all {
		out.workload(workloadOfPod(p, serving.ofPod[p], nodes, in))
	}
	for _, e := range serving.external {
		out.workload(workloadOfEndpoint(e, nodes, in.Config))
	}
	for _, s := range services.all {
		out.service(s)
	}
	out.mesh(in)
	return out.resources, errors.Join(out.problems...)
}
